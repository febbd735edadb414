"""Latents block by block: the rollout without text encoder, codec or snapshots."""

import logging
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.memory import Memory
from arl2.errors import ConfigError, GeometryError, NonFiniteError
from arl2.geometry import count_blocks, split_blocks, token_grid
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.best_of import BestOf
from arl2.rollout.blocks import Block as Block
from arl2.rollout.denoise import Prompted, Rollout
from arl2.rollout.noise import NoiseSource
from arl2.rollout.samplers import Sampler
from arl2.rollout.settings import RolloutSettings

logger = logging.getLogger("arl2.rollout")


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
    best_of: BestOf | None = None,
    memory: Memory | None = None,
    negative_memory: Memory | None = None,
) -> Iterator[Block]:
    """Generate latents block by block.

    For every block: denoising passes read memory and leave it bit-identical; then one cache-update pass, at timestep
    ``context_noise``, writes every layer's memory; then the block is yielded. Conditioning latents are committed at
    timestep 0.

    Args:
        model: the transformer.
        text: prompt embeddings ``[B, words, text_dim]``.
        noise: keyed by each sample's seed, or given.
        sampler: :class:`FewStep` or :class:`MultiStep`.
        height, width: latent size.
        frames: latent frames in all, conditioning frames included; None never ends.
        negative_text: needed if the sampler guides; it keeps a memory of its own.
        known: conditioning latents (an encoded image or video) that the stream starts with; committed, not yielded.
        first_block_frames: size of the first block, if it differs.
        context_noise: timestep of the cache-update pass of generated blocks.
        best_of: how the first block is chosen from several candidates; None: it is a single sample.
        memory, negative_memory: memory to continue from (of ``model.allocate_memory``); new if None. What is in it
            counts as generated: the sampler's first block is not sampled again.

    Returns:
        An iterator of :class:`Block`, starting after the conditioning frames. Arguments are checked at once; nothing is
        computed before the first block is requested.

    Raises:
        GeometryError: frames or latents that do not fit the block or the patch.
        ConfigError: guidance without a negative prompt, or embeddings that do not fit the model.
        MemoryMismatchError: memory of another model, batch or size.
    """
    prompted = [prompted_memory(model, text, memory, height, width)]
    if sampler.guidance_scale != 1.0:
        if negative_text is None:
            raise ConfigError(
                f"Guidance scale {sampler.guidance_scale} needs a negative prompt; give negative_text, or scale 1."
            )
        prompted.append(prompted_memory(model, negative_text, negative_memory, height, width))
    elif negative_text is not None:
        logger.warning("The negative prompt is not used: guidance is off (guidance scale 1).")
    settings = RolloutSettings(sampler, height, width, first_block_frames, context_noise, best_of)
    begun = 0 if prompted[0].memory.frames else None
    rollout = Rollout(model, prompted, noise=noise, settings=settings, first_generated=begun)
    if frames is not None:
        count_blocks(frames, rollout.block_frames, first_block_frames)
    if known is not None:
        _check_known(rollout, known, frames)
    return _blocks(rollout, frames, known)


def prompted_memory(
    model: CausalWanTransformer3DModel, text: Tensor, memory: Memory | None, height: int, width: int
) -> Prompted:
    """A prompt's cross-attention KV cache beside its memory, which is new if None.

    Raises:
        ConfigError: embeddings that do not fit the model.
        MemoryMismatchError: memory of another model, batch or size.
    """
    if memory is None:
        memory = model.allocate_memory(batch=text.shape[0], height=height, width=width)
    grid = token_grid(height, width, tuple(model.config.patch_size))
    memory.check(model.identity, text.shape[0], grid.rows, grid.columns, memory.geometry.block_frames)
    with torch.no_grad():
        text = text.to(model.patch_embedding.weight.device)
        return Prompted(model.prompt_context(text), text, memory)


def _blocks(rollout: Rollout, frames: int | None, known: Tensor | None) -> Iterator[Block]:
    if known is not None:
        for span in split_blocks(known.shape[2], rollout.block_frames, rollout.settings.first_block_frames):
            rollout.make(known[:, :, span.start : span.stop])
    while frames is None or rollout.frames < frames:
        yield rollout.make()


def _check_known(rollout: Rollout, known: Tensor, frames: int | None) -> None:
    settings = rollout.settings
    if rollout.frames:
        raise GeometryError(
            f"Known latents begin a stream, but this memory is at frame {rollout.frames}; allocate a new one."
        )
    expected = [rollout.batch, rollout.model.config.in_channels, known.shape[2], settings.height, settings.width]
    if list(known.shape) != expected:
        raise GeometryError(f"The known latents are {list(known.shape)}; this stream needs {expected}.")
    split_blocks(known.shape[2], rollout.block_frames, settings.first_block_frames)
    if frames is not None and known.shape[2] >= frames:
        raise GeometryError(
            f"{known.shape[2]} of {frames} frames are known already, so there is nothing to generate; ask for more."
        )
    if not bool(torch.isfinite(known).all()):
        raise NonFiniteError("The known latents contain NaN or infinity; check the encoded image or video.")
