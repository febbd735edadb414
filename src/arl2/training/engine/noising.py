"""Noisy copies of clips for teacher forcing: one timestep a block, where the student's sampler will be."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.diffusion.flow import add_noise, clean_to_velocity
from arl2.diffusion.schedule import shift_sigma
from arl2.geometry import FrameRange
from arl2.rollout.settings import GenerationSettings
from arl2.training.engine.config import check_share

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class NoisyClips:
    """Clips and their noisy copies.

    Attributes:
        clean, noise, noisy: ``[B, C, F, h, w]``.
        sigma: of every block, 0 to 1.
        timestep: the same for every frame, 0 to 1000: what the model takes.
        blocks: frames of each block.
    """

    clean: Float[Tensor, "batch channels frames height width"]
    noise: Float[Tensor, "batch channels frames height width"]
    noisy: Float[Tensor, "batch channels frames height width"]
    sigma: Float[Tensor, "batch blocks"]
    timestep: Float[Tensor, "batch frames"]
    blocks: tuple[FrameRange, ...]

    @property
    def sigma_of_frames(self) -> Float[Tensor, "batch 1 frames 1 1"]:
        """Of every frame, to multiply latents with."""
        return self.by_frame(self.sigma)

    def by_frame(self, values: Float[Tensor, "batch blocks"]) -> Float[Tensor, "batch 1 frames 1 1"]:
        """A number for every block, for each of its frames."""
        lengths = torch.tensor([len(span) for span in self.blocks], device=values.device)
        return values.repeat_interleave(lengths, 1)[:, None, :, None, None]

    @property
    def velocity(self) -> Float[Tensor, "batch channels frames height width"]:
        """The flow of the data: ``noise - clean``."""
        return clean_to_velocity(self.clean, self.noise)

    def block_means(self, values: Float[Tensor, "batch channels frames height width"]) -> Float[Tensor, "batch blocks"]:
        """The mean of each block."""
        return torch.stack([values[:, :, span.start : span.stop].mean((1, 2, 3, 4)) for span in self.blocks], dim=1)


@runtime_checkable
class Sigmas(Protocol):
    """Which sigmas clips are noised to."""

    def sample(self, clips: int, blocks: int, generator: torch.Generator) -> Float[Tensor, "clips blocks"]:
        """One sigma for every block, on the CPU."""
        ...


@dataclass(frozen=True)
class SigmasBetween:
    """Anywhere from ``low`` to ``high`` of a schedule, before its shift."""

    low: float
    high: float
    shift: float

    def sample(self, clips: int, blocks: int, generator: torch.Generator) -> Float[Tensor, "clips blocks"]:
        u = self.low + (self.high - self.low) * torch.rand(clips, blocks, generator=generator)
        return shift_sigma(u, self.shift)


class SamplingSigmas:
    """The sigmas of a model's sampler, and those between them.

    Args:
        settings: how the student is sampled.
        share: of the blocks at exactly one of the sampler's sigmas; the others fall between the lowest of them and pure
            noise, spread as the schedule spreads them.

    Raises:
        ConfigError: a share outside [0, 1].
    """

    def __init__(self, settings: GenerationSettings, share: float) -> None:
        check_share("level_share", share)
        sampler = settings.sampler()
        self.share, self.shift = share, settings.shift
        # The first block may have sigmas of its own.
        self.first, self.later = (torch.tensor(sampler.timesteps_of(block)) / TRAIN_STEPS for block in (0, 1))
        lowest = float(min(self.first.min(), self.later.min()))
        self.between = SigmasBetween(lowest / (self.shift - (self.shift - 1) * lowest), 1.0, self.shift)

    def sample(self, clips: int, blocks: int, generator: torch.Generator) -> Float[Tensor, "clips blocks"]:
        between = self.between.sample(clips, blocks, generator)
        exact = torch.rand(clips, blocks, generator=generator) < self.share
        own = torch.empty(clips, blocks)
        for block in range(blocks):
            sigmas = self.later if block else self.first
            own[:, block] = sigmas[torch.randint(len(sigmas), (clips,), generator=generator)]
        return torch.where(exact, own, between)


def noised(
    clean: Float[Tensor, "batch channels frames height width"],
    blocks: tuple[FrameRange, ...],
    sigmas: Sigmas,
    generator: torch.Generator,
) -> NoisyClips:
    """Clips with noise of a sigma sampled for every block; all randomness from ``generator`` (on the CPU)."""
    sigma = sigmas.sample(len(clean), len(blocks), generator).to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    lengths = torch.tensor([len(span) for span in blocks], device=clean.device)
    by_frame = sigma.repeat_interleave(lengths, 1)
    noisy = add_noise(clean, noise, by_frame[:, None, :, None, None])
    return NoisyClips(clean, noise, noisy, sigma, TRAIN_STEPS * by_frame, blocks)
