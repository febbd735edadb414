"""The memory plan: what a generation will take of its device, phase by phase, before anything is loaded.

Pure arithmetic over :mod:`arl2.model.cost` and :mod:`arl2.pipeline.footprint`, so a plan that does not fit can say
which single change would.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from arl2.errors import Arl2Error, ConfigError, GeometryError
from arl2.geometry import SinkPositions, token_grid, video_frames_of
from arl2.model.cost import (
    TransformerSize,
    memory_bytes,
    offloaded_size,
    pass_bytes,
    prompt_bytes,
    transformer_size,
)
from arl2.pipeline.devices import has_own_memory
from arl2.pipeline.footprint import TINY_DECODER, DecoderFootprint, text_pass_bytes

logger = logging.getLogger(__name__)

_TEXT_DTYPE = torch.bfloat16  # of the text encoder, whatever the rest computes in
TIGHT = 0.85  # of what is free: beyond it, what libraries take for themselves may not fit
_SMALLEST_SIDE = 128  # pixels: no smaller picture is proposed


class MemoryBudgetError(Arl2Error):
    """A generation that will not fit into its device's memory; said before anything is loaded."""


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """What is to be generated, as far as memory depends on it.

    Attributes:
        frames: latent frames of a video; None for a continuous stream.
        batch: videos at once.
        height, width: of the picture, in pixels.
        window, sink: latent frames that softmax layers see and never evict; None and 0 for the whole past.
        sink_positions: relative sinks take half as much again.
        first_block_frames: size of the first block, where it differs.
        guided: whether a negative prompt keeps a memory of its own.
        dtype: of computing; the codec is loaded in it, too.
        text_encoder: ``"leaves"`` the device once the prompt is read, ``"stays"``, or is ``"elsewhere"`` all along.
        ranks: devices that share a stream: each holds its share of memory and of a pass, and all of the rest.
        offload: whether the layers of the transformer wait in the machine's memory.
        graphs: whether passes are recorded as CUDA graphs where they can be, which work on copies of their own.
    """

    frames: int | None
    batch: int = 1
    height: int = 480
    width: int = 832
    window: int | None = None
    sink: int = 0
    sink_positions: SinkPositions = "absolute"
    first_block_frames: int | None = None
    guided: bool = False
    dtype: torch.dtype = torch.bfloat16
    text_encoder: Literal["leaves", "stays", "elsewhere"] = "leaves"
    ranks: int = 1
    offload: bool = False
    graphs: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.frames is not None and self.frames < 1):
            raise ConfigError(f"A plan is for 1 or more videos and latent frames; got {self.batch} and {self.frames}.")


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on the device, by what takes them.

    Attributes:
        work, transformer_size, decoder, text_encoder_parameters: what it was counted from.
        transformer, text_encoder, codec: weights; the text encoder's are 0 if it is elsewhere, the transformer's those
            of two layers and the small parts if it is offloaded.
        host: what of these waits in the machine's memory instead.
        prompts: cross-attention keys and values.
        states: of layers whose memory is constant.
        cache: keys and values of the frames kept.
        spare: room that a cache without a window has allocated ahead when the last frame is in, and what its last
            growth copied from.
        seat: what recorded passes work on: copies of one memory and its prompt, and working memory (estimate).
        seat_memory: of these, the memory, which is copied once more while a pass is recorded.
        activations: working memory of a pass (estimate).
        text_activations: of encoding the prompt (estimate).
        decoder_cache: what the decoder remembers (estimate).
        decoder_work: its working memory, and the pixels of a block (estimate).
    """

    work: GenerationJob
    transformer_size: TransformerSize
    decoder: DecoderFootprint
    text_encoder_parameters: int
    transformer: int
    text_encoder: int
    codec: int
    host: int
    prompts: int
    states: int
    cache: int
    spare: int
    seat: int
    seat_memory: int
    activations: int
    text_activations: int
    decoder_cache: int
    decoder_work: int

    @property
    def stream(self) -> int:
        """Memory of all streams: states and caches."""
        return self.states + self.cache + self.spare

    @property
    def phases(self) -> dict[str, int]:
        """The highest moment of each phase."""
        weights = self.transformer + self.codec
        staying = self.text_encoder if self.work.text_encoder == "stays" else 0
        streaming = weights + staying + self.prompts + self.stream + self.seat + self.decoder_cache
        return {
            "encode prompt": weights + self.text_encoder + self.text_activations,
            "denoise": streaming + self.activations + self.seat_memory,
            "decode": streaming + self.decoder_work,
        }

    @property
    def peak(self) -> int:
        """The highest moment of all."""
        return max(self.phases.values())

    def parts(self) -> dict[str, int]:
        """Every part that takes anything, by name."""
        named = {
            "transformer": self.transformer,
            "text encoder": self.text_encoder + self.text_activations,
            "codec": self.codec,
            "prompts": self.prompts,
            "states": self.states,
            "key-value cache": self.cache + self.spare,
            "CUDA graphs": self.seat + self.seat_memory,
            "a pass": self.activations,
            "decoding": self.decoder_cache + self.decoder_work,
        }
        return {name: size for name, size in named.items() if size}


@dataclass(frozen=True)
class Change:
    """One change of the settings, and the plan with it."""

    words: str
    plan: MemoryPlan


def plan_memory(
    config: Mapping[str, Any], work: GenerationJob, *, text_encoder_parameters: int, decoder: DecoderFootprint
) -> MemoryPlan:
    """What a generation takes. Loads nothing.

    Args:
        config: the transformer's (what is missing has its default).
        text_encoder_parameters: as ``footprint.parameters_of`` reads them off its files; 0 for none.
        decoder: ``footprint.wan_decoder(...)`` or ``footprint.TINY_DECODER``.

    Raises:
        ConfigError: a configuration that cannot be, or a continuous stream whose cache has no window.
        GeometryError: a picture that fits neither codec nor patch.
    """
    return _plan(transformer_size(config), work, text_encoder_parameters, decoder)


def _plan(
    size: TransformerSize, work: GenerationJob, text_encoder_parameters: int, decoder: DecoderFootprint
) -> MemoryPlan:
    config, dtype, factor = size.config, work.dtype, decoder.spatial_factor
    for name, pixels in (("height", work.height), ("width", work.width)):
        if pixels < factor or pixels % factor:
            raise GeometryError(f"The {name} is {pixels} pixels; give a multiple of {factor}.")
    grid = token_grid(work.height // factor, work.width // factor, tuple(config["patch_size"]))
    block, streams, pixels = config["block_frames"], work.batch * (2 if work.guided else 1), work.height * work.width
    per_stream = memory_bytes(config, batch=streams, frame_tokens=grid.tokens, element_size=dtype.itemsize)
    kept, spare = _frames_kept(work, block, has_cache=per_stream.cache_per_frame > 0)
    moved_sinks = work.sink if work.sink_positions == "relative" else 0
    is_here = work.text_encoder != "elsewhere" and text_encoder_parameters > 0
    # One tensor of one layer grows at a time: then its old copy is there, too.
    growing = spare.old * per_stream.growth_per_frame
    text_bytes = text_encoder_parameters * _TEXT_DTYPE.itemsize
    on_device, on_host = offloaded_size(size, dtype) if work.offload else (size.weight_bytes(dtype), 0)
    block_pixels = 3 * decoder.temporal_factor * block * pixels * work.batch
    states, cache = per_stream.states, per_stream.at(kept, moved_sinks=moved_sinks) - per_stream.states
    prompts = prompt_bytes(config, batch=streams, element_size=dtype.itemsize)
    activations = pass_bytes(config, tokens=work.batch * block * -(-grid.tokens // work.ranks), dtype=dtype)
    # Passes are recorded once all blocks look alike: never in a cache that grows. Under guidance two take turns.
    recorded = work.graphs and not work.offload and not (cache and work.window is None)
    seat_memory = (states + cache) * work.batch // streams if recorded else 0
    return MemoryPlan(
        work=work,
        transformer_size=size,
        decoder=decoder,
        text_encoder_parameters=text_encoder_parameters,
        transformer=on_device,
        text_encoder=text_bytes if is_here else 0,
        codec=decoder.weight_bytes(dtype),
        host=on_host + (text_bytes if work.text_encoder == "elsewhere" else 0),
        prompts=prompts,
        states=states // work.ranks,
        cache=cache // work.ranks,
        spare=(spare.ahead * per_stream.cache_per_frame + growing) // work.ranks,
        seat=seat_memory + prompts * work.batch // streams + activations if recorded else 0,
        seat_memory=seat_memory,
        activations=activations,
        text_activations=text_pass_bytes(config, batch=streams, dtype=_TEXT_DTYPE) if is_here else 0,
        decoder_cache=decoder.cache_bytes(batch=work.batch, pixels=pixels, dtype=dtype),
        # Pixels leave as float32, and pieces of a block are joined into a copy.
        decoder_work=decoder.work_bytes(batch=work.batch, pixels=pixels, dtype=dtype) + 2 * 4 * block_pixels,
    )


@dataclass(frozen=True)
class _Spare:
    """Frames that a cache has room for beyond those kept, and had room for before it grew last."""

    ahead: int
    old: int


def _frames_kept(work: GenerationJob, block: int, *, has_cache: bool) -> tuple[int, _Spare]:
    """Frames in a cache at the end, as ``KeyValueCache`` allocates them."""
    if not has_cache:
        return 0, _Spare(0, 0)
    if work.window is not None:
        if work.window < work.sink + block:
            raise ConfigError(
                f"A window of {work.window} frames cannot hold {work.sink} sink frames and a block of {block}; "
                f"use at least {work.sink + block}."
            )
        return work.window, _Spare(0, 0)
    if work.frames is None:
        raise ConfigError("A continuous stream needs a window: softmax layers keep every frame without one.")
    room, old = 4 * block, 0
    while room < work.frames:
        room, old = 2 * room, room
    return work.frames, _Spare(room - work.frames, old)


def check_fits(plan: MemoryPlan, available: int | None, device: str) -> None:
    """Refuse what will not fit, before it is loaded; warn where it is tight.

    Args:
        available: bytes free on the device; None if it does not say: then all passes.
        device: as the caller named it.

    Raises:
        MemoryBudgetError: the message names the single changes that fit, or what all of them together need.
    """
    if available is None or plan.peak <= TIGHT * available:
        return
    phase = max(plan.phases, key=lambda name: plan.phases[name])
    need = f"about {_gb(plan.peak)} on {device} ({phase}; {_listed(plan)})"
    if plan.peak <= available:
        logger.warning("This takes %s, and %s are free: it may not fit.", need, _gb(available))
        return
    fitting = changes_that_fit(plan, available, device)
    if fitting:
        advice = "any one of these would fit: " + "; ".join(change.words for change in fitting)
    else:
        least = _all_changes(plan, device)
        advice = f"no single change is enough; all together ({least.words}) take {_gb(least.plan.peak)}"
    raise MemoryBudgetError(f"This takes {need}, but {_gb(available)} are free; {advice}.")


def _peak(plan: MemoryPlan) -> int:
    return plan.peak


def changes_that_fit(
    plan: MemoryPlan, available: int, device: str, measure: Callable[[MemoryPlan], int] = _peak
) -> tuple[Change, ...]:
    """Single changes of the settings with which a plan fits into ``available`` bytes, each as mild as it can be.

    Args:
        plan: that does not fit.
        available: bytes.
        device: as the caller named it.
        measure: which bytes of a plan count; as a rule its peak.
    """
    changes = _mildest(plan, device, lambda changed: measure(changed) <= available)
    return tuple(change for change in changes if measure(change.plan) <= available)


def _mildest(plan: MemoryPlan, device: str, is_small: Callable[[MemoryPlan], bool]) -> Iterator[Change]:
    work, config = plan.work, plan.transformer_size.config
    block = config["block_frames"]
    smallest = work.sink + block

    def fits(changed: GenerationJob) -> bool:
        return is_small(planned_anew(plan, changed))

    if plan.cache:
        kept = work.window or work.frames or smallest
        window = _largest(smallest, kept - 1, lambda frames: fits(replace(work, window=frames)))
        if window is not None:
            yield Change(f"window={window}", planned_anew(plan, replace(work, window=window)))
        if work.window is None and work.frames is not None:
            first = work.first_block_frames or block
            later = (work.frames - first) // block
            blocks = _largest(0, later - 1, lambda n: fits(replace(work, frames=first + n * block)))
            if blocks is not None:
                frames = first + blocks * block
                shown = video_frames_of(0, frames, plan.decoder.temporal_factor)
                yield Change(f"num_frames={shown}", planned_anew(plan, replace(work, frames=frames)))
    for picture in _smaller_pictures(work, tuple(config["patch_size"]), plan.decoder.spatial_factor):
        if fits(picture):
            yield Change(f"height={picture.height}, width={picture.width}", planned_anew(plan, picture))
            break
    yield from _free_changes(plan, device)


def _free_changes(plan: MemoryPlan, device: str) -> Iterator[Change]:
    """Changes that leave the video as long and as large as it was."""
    work = plan.work
    if work.dtype.itemsize > torch.bfloat16.itemsize:
        yield Change("dtype=bfloat16", planned_anew(plan, replace(work, dtype=torch.bfloat16)))
    if not work.offload and has_own_memory(device):
        yield Change("offload=layers", planned_anew(plan, replace(work, offload=True)))
    if plan.decoder != TINY_DECODER:
        yield Change("the tiny decoder (--decoder)", _with_decoder(plan, work, TINY_DECODER))
    # From a CPU it has nowhere to go.
    if plan.text_encoder and work.text_encoder == "stays" and not device.startswith("cpu"):
        words = "a text encoder that leaves once the prompt is read"
        yield Change(words, planned_anew(plan, replace(work, text_encoder="leaves")))
    if plan.text_encoder and not device.startswith("cpu"):
        yield Change("the text encoder on the CPU", planned_anew(plan, replace(work, text_encoder="elsewhere")))


def _all_changes(plan: MemoryPlan, device: str) -> Change:
    """Everything at once, the picture and the length as they are, the window as small as it can be."""
    work, words = plan.work, [change.words for change in _free_changes(plan, device)]
    least = replace(work, dtype=min(work.dtype, torch.bfloat16, key=lambda dtype: dtype.itemsize))
    if plan.cache and (work.window is None or work.window > work.sink + plan.transformer_size.config["block_frames"]):
        least = replace(least, window=work.sink + plan.transformer_size.config["block_frames"])
        words.append(f"window={least.window}")
    if has_own_memory(device):
        least = replace(least, offload=True)
    if plan.text_encoder:
        least = replace(least, text_encoder=work.text_encoder if device.startswith("cpu") else "elsewhere")
    return Change("; ".join(words) or "there is none left", _with_decoder(plan, least, TINY_DECODER))


def planned_anew(plan: MemoryPlan, work: GenerationJob) -> MemoryPlan:
    """The plan of another job with the same model."""
    return _with_decoder(plan, work, plan.decoder)


def _with_decoder(plan: MemoryPlan, work: GenerationJob, decoder: DecoderFootprint) -> MemoryPlan:
    return _plan(plan.transformer_size, work, plan.text_encoder_parameters, decoder)


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number from ``low`` to ``high`` that fits, if smaller ones fit where larger ones do."""
    if low > high or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _smaller_pictures(work: GenerationJob, patch: tuple[int, int, int], spatial_factor: int) -> Iterator[GenerationJob]:
    """The same shape, ever smaller, in steps that codec and patch allow."""
    rows, columns = spatial_factor * patch[1], spatial_factor * patch[2]
    for height in range(work.height - rows, _SMALLEST_SIDE - 1, -rows):
        width = max(columns, round(work.width * height / work.height / columns) * columns)
        if width >= _SMALLEST_SIDE:
            yield replace(work, height=height, width=width)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _listed(plan: MemoryPlan) -> str:
    return ", ".join(f"{name} {_gb(size)}" for name, size in plan.parts().items() if size >= 50_000_000)
