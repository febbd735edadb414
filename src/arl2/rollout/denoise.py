"""The rollout: read memory while a block is denoised, write it once when the block is done.

The only place that denoises and commits: ``generate_blocks`` iterates it for latents, ``Stream`` for everything else.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.memory import Memory
from arl2.errors import MemoryMismatchError
from arl2.float64 import float64_device
from arl2.geometry import FrameRange, split_blocks
from arl2.model.transformer import CausalWanTransformer3DModel, PromptCache
from arl2.rollout.best_of import SideBySide
from arl2.rollout.blocks import Block
from arl2.rollout.finite import require_finite
from arl2.rollout.noise import NoiseSource
from arl2.rollout.settings import RolloutSettings

Latents = Float[Tensor, "batch channels frames height width"]


@dataclass(frozen=True)
class Prompted:
    """A prompt (cross-attention KV cache and embeddings ``[B, words, width]``) and its memory."""

    prompt: PromptCache
    text: Tensor
    memory: Memory


class Rollout:
    """The position of a batch of streams, and the passes that advance it.

    Args:
        model: the transformer.
        prompted: the prompt and its memory; then, under guidance, the negative prompt and its own.
        noise: keyed by each sample's seed, or given.
        settings: of all blocks.
        first_generated: number of the first block that was generated and not given; None if all before were given, or
            nothing is before. The sampler treats that block apart.

    Raises:
        ConfigError: noise for another batch.
        GeometryError: memory whose position is not a block boundary.
        MemoryMismatchError: one memory for both prompts, or memories at different frames.
    """

    def __init__(
        self,
        model: CausalWanTransformer3DModel,
        prompted: Sequence[Prompted],
        *,
        noise: NoiseSource,
        settings: RolloutSettings,
        first_generated: int | None = None,
    ) -> None:
        own, last = prompted[0].memory, prompted[-1].memory
        if len(prompted) > 1 and last is own:
            raise MemoryMismatchError("The prompt and the negative prompt share one memory; allocate one for each.")
        if last.frames != own.frames:
            raise MemoryMismatchError(
                f"The prompt's memory stands at frame {own.frames} but the negative prompt's at {last.frames}; keep "
                "the two together."
            )
        if own.frames:
            # A stream keeps the block sizes it began with.
            split_blocks(own.frames, own.geometry.block_frames, settings.first_block_frames)
        noise.check(own.geometry.batch)
        self.model, self.prompted, self.noise, self.settings = model, tuple(prompted), noise, settings
        self.first_generated = first_generated
        # Only the first commit is checked for NaN, the first flow, and the first that reads all states: every check
        # synchronizes with the device.
        self._flow_is_finite = self._memory_is_finite = False

    @property
    def memories(self) -> tuple[Memory, ...]:
        """One, or two under guidance."""
        return tuple(one.memory for one in self.prompted)

    @property
    def frames(self) -> int:
        """Latent frames committed since the stream began."""
        return self.prompted[0].memory.frames

    @property
    def batch(self) -> int:
        """Streams side by side."""
        return self.prompted[0].memory.geometry.batch

    @property
    def block_frames(self) -> int:
        """Latent frames of a block; the first may differ."""
        return self.prompted[0].memory.geometry.block_frames

    @property
    def device(self) -> torch.device:
        return self.model.patch_embedding.weight.device

    def next_block(self) -> tuple[int, FrameRange]:
        first = self.block_frames if self.settings.first_block_frames is None else self.settings.first_block_frames
        start = self.frames
        if start == 0:
            return 0, FrameRange(0, first)
        return 1 + (start - first) // self.block_frames, FrameRange(start, start + self.block_frames)

    @torch.no_grad()
    def make(self, known: Latents | None = None, *, cut: bool = False) -> Block:
        """Denoise the next block, or use ``known`` (conditioning) latents instead, and commit it.

        ``cut`` marks a block that does not continue the one before it.
        """
        index, span = self.next_block()
        started = time.perf_counter()
        latents = self._generate(index, span) if known is None else known.to(self.device)
        denoised = time.perf_counter()
        self.commit(latents, known=known is not None)
        committed = time.perf_counter()
        if known is None and self.first_generated is None:
            self.first_generated = index
        return Block(index, span, latents, 0.0 if known is not None else denoised - started, committed - denoised, cut)

    def forget_from(self, index: int) -> None:
        """The stream goes back to before block ``index``; its memories are the caller's to restore."""
        if self.first_generated is not None and self.first_generated >= index:
            self.first_generated = None

    @torch.no_grad()
    def commit(self, latents: Latents, *, known: bool) -> None:
        """The cache-update pass, which only writes memory: of ``known`` (conditioning) latents at timestep 0."""
        timestep = 0.0 if known else self.settings.context_noise
        if any(memory.is_blank for memory in self.memories):
            self._flow_is_finite = False  # what reads a state had nothing to do yet
        for one in self.prompted:
            self.model.commit(latents, _timesteps(latents, timestep), one.prompt, one.memory)
            if not self._memory_is_finite:
                require_finite(one.memory.views().values(), self.model, latents, one.prompt)
        self._memory_is_finite = True

    def _generate(self, index: int, span: FrameRange) -> Latents:
        best_of = self.settings.best_of
        if index or best_of is None:
            return self._denoise(index, span)
        return best_of.choose(self._side_by_side(best_of.candidates)._denoise(index, span), self.prompted[0].text)

    def _side_by_side(self, count: int) -> "Rollout":
        """A rollout of ``count`` candidates per stream, each with its own noise and empty memory."""
        settings, batch = self.settings, count * self.batch
        prompted = [
            Prompted(
                one.prompt.repeated(count),
                one.text.repeat(count, 1, 1),
                self.model.allocate_memory(
                    batch=batch, height=settings.height, width=settings.width, window=self.block_frames, sink=0
                ),
            )
            for one in self.prompted
        ]
        noise = SideBySide([self.noise.candidate(number) for number in range(count)])
        return Rollout(self.model, prompted, noise=noise, settings=settings)

    def _denoise(self, index: int, span: FrameRange) -> Latents:
        shape = (self.batch, self.model.config.in_channels, len(span), self.settings.height, self.settings.width)
        sampler, on_step, passes = self.settings.sampler, self.settings.on_step, itertools.count()

        def predict(x: Tensor, timestep: float) -> Tensor:
            flows = [self._read(x, timestep, one) for one in self.prompted]
            flow = flows[0] if len(flows) == 1 else flows[1] + sampler.guidance_scale * (flows[0] - flows[1])
            if on_step is not None:
                on_step(index, next(passes), timestep, x)
            return flow

        def noise(number: int) -> Tensor:
            return self.noise.sample(index, number, shape).to(self.device)

        first = index if self.first_generated is None else self.first_generated
        return sampler.sample(predict, noise, index - first)

    def _read(self, x: Tensor, timestep: float, one: Prompted) -> Tensor:
        """A denoising pass: memory is read, never written."""
        flow = self.model.predict(x, _timesteps(x, timestep), one.prompt, one.memory)
        if not self._flow_is_finite:
            require_finite([flow], self.model, x, one.prompt)
            self._flow_is_finite = True
        return flow.to(x.dtype)


def _timesteps(x: Tensor, timestep: float) -> Float[Tensor, "batch frames"]:
    return torch.full((x.shape[0], x.shape[2]), timestep, dtype=torch.float64, device=float64_device(x.device))
