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


@dataclass(frozen=True)
class StreamSize:
    """Bytes of a stream, and what would fit into fewer, in words (None: nothing would)."""

    size: int
    smaller: Callable[[int], str | None]


def stream_size(pipe: ARL2Pipeline, checked: CheckedOptions) -> StreamSize:
    """Memory, prompt, decoder, and the copy of a point that is being written.

    Raises:
        ConfigError: a stream that would grow without end: softmax layers without a window, and no num_frames.
    """
    transformer, shape, settings = pipe.transformer, checked.shape, checked.settings
    factor = pipe.codec.spatial_factor
    job = GenerationJob(
        frames=None if checked.plan is None else checked.plan.latent_frames,
        height=factor * shape.height,
        width=factor * shape.width,
        window=shape.window,
        sink=shape.sink,
        sink_positions=shape.sink_positions,
        first_block_frames=settings.first_block_frames,
        guided=settings.guidance_scale != 1.0,
        dtype=transformer.patch_embedding.weight.dtype,
    )
    plan = plan_memory(dict(transformer.config), job, text_encoder_parameters=0, decoder=_decoder(pipe.codec))

    def smaller(free: int) -> str | None:
        rest = plan.peak - _of_stream(plan)
        found = [change.words for change in changes_that_fit(plan, rest + free, str(pipe.device))]
        return "; or ".join(words for words in found if words.startswith(_OF_STREAMS)) or None

    return StreamSize(_of_stream(plan), smaller)


def _of_stream(plan: MemoryPlan) -> int:
    return plan.prompts + 2 * (plan.states + plan.decoder_cache) + plan.cache + plan.spare


def _decoder(codec: VideoCodec) -> DecoderFootprint:
    """Of a codec whose memory is not known, nothing is counted: the others are small."""
    wan = sys.modules.get("arl2.video.wan_codec")  # where it is not loaded, this is none; it would load diffusers
    if wan is not None and isinstance(codec, wan.WanCodec):
        return wan_decoder(dict(codec.vae.config), 0)
    if isinstance(codec, TinyCodec):
        return TINY_DECODER
    return DecoderFootprint(0, 0.0, 0.0, spatial_factor=codec.spatial_factor, temporal_factor=codec.temporal_factor)
