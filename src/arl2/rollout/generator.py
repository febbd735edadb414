"""The rollout: read memory while a block is denoised, write it once when the block is done, hand the block out."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.access import Access
from arl2.attention.memory import Memory
from arl2.errors import ConfigError, GeometryError, MemoryMismatchError, NonFiniteError
from arl2.geometry import FrameRange, split_blocks, token_grid
from arl2.model.passes import Stream
from arl2.model.transformer import CausalWanTransformer3DModel, PromptContext
from arl2.rollout.noise import NoiseSource
from arl2.rollout.samplers import Sampler

logger = logging.getLogger("arl2.rollout")


@dataclass(frozen=True)
class Block:
    """One finished block.

    Attributes:
        index: number of the block, from 0 at the start of the stream.
        frames: its latent frames, counted from the start of the stream.
        latents: ``[B, C, F, h, w]``.
        denoise_seconds, commit_seconds: host time of the denoising passes and of the clean pass (on a GPU the queue may
            still be running).
    """

    index: int
    frames: FrameRange
    latents: Float[Tensor, "batch channels frames height width"]
    denoise_seconds: float
    commit_seconds: float


@dataclass(frozen=True)
class Prompted:
    """A prompt and the memory of the stream under this prompt."""

    prompt: PromptContext
    memory: Memory


@torch.no_grad()
def generate_blocks(
    model: CausalWanTransformer3DModel,
    text: Float[Tensor, "batch words text"],
    *,
    noise: NoiseSource,
    sampler: Sampler,
    height: int,
    width: int,
    frames: int | None = None,
    negative_text: Float[Tensor, "batch words text"] | None = None,
    known: Float[Tensor, "batch channels known height width"] | None = None,
    first_block_frames: int | None = None,
    context_noise: float = 0.0,
    memory: Memory | None = None,
    negative_memory: Memory | None = None,
) -> Iterator[Block]:
    """Generate latents block by block.

    For every block: denoising passes read memory and leave it bit-identical; then one clean pass, at timestep
    ``context_noise``, writes every layer's memory; then the block is yielded.

    Args:
        model: the transformer.
        text: prompt embeddings ``[B, words, text_dim]``.
        noise: a sample's seeds, or noise handed in.
        sampler: :class:`FewStep` or :class:`MultiStep`.
        height, width: latent size.
        frames: latent frames in all, known ones included; None goes on for ever.
        negative_text: needed if the sampler guides; it keeps a memory of its own.
        known: latents that the stream starts with (an encoded image or video), given by clean passes, not yielded.
        first_block_frames: size of the first block, if it differs.
        context_noise: timestep of the clean pass.
        memory, negative_memory: memory to go on with (allocated by ``model.allocate_memory``); new if None.

    Returns:
        An iterator of :class:`Block`, the first one after the known frames. Nothing is computed before the first is
        asked for, but what cannot be is refused at once.

    Raises:
        GeometryError: frames or latents that do not fit the block or the patch.
        ConfigError: guidance without a negative prompt, or embeddings that do not fit the model.
        MemoryMismatchError: memory of another model, batch or size.
    """
    streams = [_prompted(model, text, memory, height, width)]
    guided = sampler.guidance_scale != 1.0
    if guided:
        if negative_text is None:
            raise ConfigError(
                f"Guidance scale {sampler.guidance_scale} needs a negative prompt; give one, or set the scale to 1."
            )
        streams.append(_prompted(model, negative_text, negative_memory, height, width))
    elif negative_text is not None:
        logger.warning("The negative prompt is not used: this sampler does not guide (guidance scale 1).")
    own = streams[0].memory
    if guided and streams[-1].memory is own:
        raise MemoryMismatchError("The prompt and the negative prompt share one memory; allocate one for each.")
    if streams[-1].memory.frames != own.frames:
        raise MemoryMismatchError(
            f"The prompt's memory stands at frame {own.frames} but the negative prompt's at "
            f"{streams[-1].memory.frames}; keep the two together."
        )
    block_frames = own.geometry.block_frames
    if own.frames:
        split_blocks(own.frames, block_frames, first_block_frames)  # a stream goes on with the blocks it began with
    if frames is not None:
        split_blocks(frames, block_frames, first_block_frames)
    if known is not None:
        _check_known(model, known, own, (height, width), frames, first_block_frames)
    noise.check(text.shape[0])
    return _rollout(model, streams, noise, sampler, (height, width), frames, known, first_block_frames, context_noise)


def _rollout(
    model: CausalWanTransformer3DModel,
    streams: list[Prompted],
    noise: NoiseSource,
    sampler: Sampler,
    size: tuple[int, int],
    frames: int | None,
    known: Tensor | None,
    first_block_frames: int | None,
    context_noise: float,
) -> Iterator[Block]:
    own, device = streams[0].memory, model.patch_embedding.weight.device
    if known is not None:
        with torch.no_grad():
            _commit_known(model, streams, known.to(device), first_block_frames, context_noise)

    def predict(x: Tensor, timestep: float) -> Tensor:
        flows = [_read(model, x, timestep, stream) for stream in streams]
        if len(flows) == 1:
            return flows[0]
        return flows[1] + sampler.guidance_scale * (flows[0] - flows[1])

    for index, span in _blocks(own, first_block_frames, frames):
        shape = (own.geometry.batch, model.config.in_channels, len(span), *size)

        def draw(draw_index: int, index: int = index, shape: tuple[int, ...] = shape) -> Tensor:
            return noise.draw(index, draw_index, shape).to(device)

        # Around the work and not around the yield: the caller's own grad mode is none of our business.
        with torch.no_grad():
            started = time.perf_counter()
            latents = sampler.sample(predict, draw, index)
            denoised = time.perf_counter()
            for stream in streams:
                _commit(model, latents, context_noise, stream)
            committed = time.perf_counter()
        yield Block(index, span, latents, denoised - started, committed - denoised)


def _check_known(
    model: CausalWanTransformer3DModel,
    known: Tensor,
    memory: Memory,
    size: tuple[int, int],
    frames: int | None,
    first_block_frames: int | None,
) -> None:
    if memory.frames:
        raise GeometryError(
            f"Known latents begin a stream, but this memory stands at frame {memory.frames}; allocate a new one."
        )
    expected = [memory.geometry.batch, model.config.in_channels, known.shape[2], *size]
    if list(known.shape) != expected:
        raise GeometryError(f"The known latents are {list(known.shape)}; this stream needs {expected}.")
    split_blocks(known.shape[2], memory.geometry.block_frames, first_block_frames)
    if frames is not None and known.shape[2] >= frames:
        raise GeometryError(
            f"{known.shape[2]} of {frames} frames are known already, so there is nothing to generate; ask for more."
        )
    if not bool(torch.isfinite(known).all()):
        raise NonFiniteError("The known latents contain NaN or infinity; check the encoded image or video.")


def _prompted(
    model: CausalWanTransformer3DModel, text: Tensor, memory: Memory | None, height: int, width: int
) -> Prompted:
    if memory is None:
        memory = model.allocate_memory(batch=text.shape[0], height=height, width=width)
    grid = token_grid(height, width, tuple(model.config.patch_size))
    memory.check(model.identity, text.shape[0], grid.rows, grid.columns, memory.geometry.block_frames)
    with torch.no_grad():
        return Prompted(model.prompt_context(text.to(model.patch_embedding.weight.device)), memory)


def _blocks(memory: Memory, first_block_frames: int | None, frames: int | None) -> Iterator[tuple[int, FrameRange]]:
    """Index and frames of every block that is still to come, from where memory stands."""
    block_frames = memory.geometry.block_frames
    first = block_frames if first_block_frames is None else first_block_frames
    while frames is None or memory.frames < frames:
        start = memory.frames
        if start == 0:
            yield 0, FrameRange(0, first)
        else:
            yield 1 + (start - first) // block_frames, FrameRange(start, start + block_frames)


def _commit_known(
    model: CausalWanTransformer3DModel,
    streams: list[Prompted],
    known: Tensor,
    first_block_frames: int | None,
    context_noise: float,
) -> None:
    for span in split_blocks(known.shape[2], streams[0].memory.geometry.block_frames, first_block_frames):
        for stream in streams:
            _commit(model, known[:, :, span.start : span.stop], context_noise, stream)


def _read(model: CausalWanTransformer3DModel, x: Tensor, timestep: float, stream: Prompted) -> Tensor:
    """A denoising pass: memory is read, never written."""
    flow = model(x, _timesteps(x, timestep), stream.prompt, run=Stream(stream.memory, Access.READ))
    assert flow is not None  # only a committing pass predicts nothing
    return flow.to(x.dtype)


def _commit(model: CausalWanTransformer3DModel, x: Tensor, timestep: float, stream: Prompted) -> None:
    """The clean pass: its only purpose is to write memory."""
    model(x, _timesteps(x, timestep), stream.prompt, run=Stream(stream.memory, Access.COMMIT))


def _timesteps(x: Tensor, timestep: float) -> Float[Tensor, "batch frames"]:
    return torch.full((x.shape[0], x.shape[2]), timestep, dtype=torch.float64, device=x.device)
