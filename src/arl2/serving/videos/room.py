"""Whether there is memory for a video, reckoned from the model's sizes before anything is allocated."""

from dataclasses import dataclass

from arl2.geometry import token_grid
from arl2.model.cost import memory_bytes, pass_bytes, prompt_bytes, transformer_size
from arl2.pipeline.free_memory import available_bytes
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.live.wire import NoRoomError
from arl2.streams.request import CheckedOptions

_SHARE = 0.85  # of what is free: the rest is for libraries, and for what is measured too low
_PIXEL_BYTES = 2 * 3 * 4  # of a block: float32, and a copy while it is put together


@dataclass(frozen=True)
class VideoMemory:
    """Bytes that a video takes beside the model: ``fixed``, and more for every latent frame that its cache keeps."""

    fixed: int
    per_frame: int
    kept: int

    @property
    def total(self) -> int:
        """At its end, where a cache without a window is largest and has room for as much again."""
        return self.fixed + self.per_frame * self.kept


def video_memory(pipe: ARL2Pipeline, checked: CheckedOptions) -> VideoMemory:
    """What a video of these options takes."""
    model, shape = pipe.transformer, checked.shape
    config = transformer_size(dict(model.config)).config
    grid = token_grid(shape.height, shape.width, tuple(config["patch_size"]))
    streams = 2 if checked.settings.guidance_scale != 1.0 else 1
    dtype = model.compute_dtype
    memory = memory_bytes(config, batch=streams, frame_tokens=grid.tokens, element_size=dtype.itemsize)
    block = pipe.block_frames
    passing = pass_bytes(config, tokens=block * grid.tokens, dtype=dtype)
    pixels = checked.settings.height * checked.settings.width * block * pipe.codec.temporal_factor * _PIXEL_BYTES
    prompts = prompt_bytes(config, batch=streams, element_size=dtype.itemsize)
    frames = 0 if checked.plan is None else checked.plan.latent_frames
    kept = 2 * max(frames, 2 * block) if shape.window is None else shape.window
    return VideoMemory(memory.states + passing + pixels + prompts, memory.cache_per_frame, kept)


def require_room(pipe: ARL2Pipeline, checked: CheckedOptions, *, retry_after: float) -> None:
    """Refuse a video for which there is no memory now.

    Raises:
        NoRoomError: it says what would fit.
    """
    free = available_bytes(str(pipe.device))
    needed = video_memory(pipe, checked)
    if free is None or needed.total <= _SHARE * free:
        return
    advice = "ask for a smaller size, or later"
    left = _SHARE * free - needed.fixed
    if checked.shape.window is None and needed.per_frame and left > 0:
        frames = int(left / needed.per_frame) // 2
        fitting = 1 + (frames - 1) * pipe.codec.temporal_factor
        if fitting >= 1:
            advice = f"at this size about {fitting:,} frames would fit"
    raise NoRoomError(
        f"This video takes about {needed.total / 1e9:,.2f} GB of memory beside the model, and {free / 1e9:,.2f} GB are "
        f"free; {advice}.",
        retry_after,
    )
