"""What a stream takes of its device, from the model's sizes, before anything is allocated."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from arl2.pipeline.budget import GenerationJob, MemoryPlan, changes_that_fit, plan_memory
from arl2.pipeline.footprint import TINY_DECODER, DecoderFootprint, wan_decoder
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.request import CheckedOptions
from arl2.video.codec import VideoCodec
from arl2.video.tiny_codec import TinyCodec

_OF_STREAMS = ("window=", "num_frames=", "height=")  # changes that one stream can make alone
_ENCODER_FRAMES = 16  # that x264 keeps at its fastest, with its tables, in bytes of YUV 4:2:0


@dataclass(frozen=True)
class StreamSize:
    """Bytes of a stream.

    Attributes:
        size: that it holds as long as it runs.
        work: that its passes and its decoder take on top; streams take turns, so that the largest counts once.
        smaller: what would fit into so many bytes, in words, where the work of others takes so many (None: nothing).
    """

    size: int
    work: int
    smaller: Callable[[int, int], str | None]


def job_of(pipe: ARL2Pipeline, checked: CheckedOptions) -> GenerationJob:
    """Options as the memory planner takes them."""
    shape, settings, factor = checked.shape, checked.settings, pipe.codec.spatial_factor
    return GenerationJob(
        frames=None if checked.plan is None else checked.plan.latent_frames,
        height=factor * shape.height,
        width=factor * shape.width,
        window=shape.window,
        sink=shape.sink,
        sink_positions=shape.sink_positions,
        first_block_frames=settings.first_block_frames,
        guided=settings.guidance_scale != 1.0,
        dtype=pipe.transformer.patch_embedding.weight.dtype,
    )


def stream_size(
    pipe: ARL2Pipeline, job: GenerationJob, *, scale: int = 1, candidates: int = 1, points: int = 0
) -> StreamSize:
    """What a stream takes: memory, prompt, decoder, the copy of a point that is being written, pictures, encoder; and
    while it is its turn a pass and a block of pixels.

    Args:
        pipe: the model.
        job: the stream.
        scale: by which its pictures are enlarged.
        candidates: first blocks side by side.
        points: copies of its memory that it keeps to be rewound.

    Raises:
        ConfigError: a stream that would grow without end: softmax layers without a window, and no num_frames.
    """
    plan = plan_memory(dict(pipe.transformer.config), job, text_encoder_parameters=0, decoder=_decoder(pipe.codec))

    def size(plan: MemoryPlan) -> int:
        pixels = plan.work.height * plan.work.width
        frames = plan.decoder.temporal_factor * plan.transformer_size.config["block_frames"]
        pictures = 2 * 3 * frames * pixels + _ENCODER_FRAMES * 3 * scale * scale * pixels // 2
        copies = points * (plan.states + plan.cache + plan.decoder_cache)
        return plan.prompts + 2 * (plan.states + plan.decoder_cache) + plan.cache + plan.spare + copies + pictures

    def work(plan: MemoryPlan) -> int:
        return candidates * plan.activations + plan.decoder_work

    def smaller(free: int, working: int) -> str | None:
        def measure(changed: MemoryPlan) -> int:
            return size(changed) + max(work(changed), working)

        found = [change.words for change in changes_that_fit(plan, free, str(pipe.device), measure)]
        return "; or ".join(words for words in found if words.startswith(_OF_STREAMS)) or None

    return StreamSize(size(plan), work(plan), smaller)


def _decoder(codec: VideoCodec) -> DecoderFootprint:
    """Of a codec whose memory is not known, nothing is counted: the others are small."""
    wan = sys.modules.get("arl2.video.wan_codec")  # where it is not loaded, this is none; it would load diffusers
    if wan is not None and isinstance(codec, wan.WanCodec):
        return wan_decoder(dict(codec.vae.config), 0)
    if isinstance(codec, TinyCodec):
        return TINY_DECODER
    return DecoderFootprint(0, 0.0, 0.0, spatial_factor=codec.spatial_factor, temporal_factor=codec.temporal_factor)
