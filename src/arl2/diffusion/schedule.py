"""The shifted noise schedule a model was trained on, and the step lists that sample from it."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.float64 import float64_device, widest_dtype


def shift_sigma(u: Float[Tensor, "*shape"], shift: float) -> Float[Tensor, "*shape"]:
    """``shift u / (1 + (shift - 1) u)``: more timesteps where there is more noise."""
    return shift * u / (1 + (shift - 1) * u)


@dataclass(frozen=True)
class NoiseSchedule:
    """Flow-matching timesteps ``t_j = train_steps * sigma_j``, descending from full noise.

    Attributes:
        shift: of the schedule (5 for the published AR students).
        train_steps: number of timesteps, and the timestep of full noise (1000).
    """

    shift: float = 5.0
    train_steps: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf or self.train_steps < 1:
            raise ConfigError(
                f"Got shift {self.shift} and train_steps {self.train_steps}; give a finite shift > 0, train_steps >= 1."
            )

    def sigmas(self) -> Float[Tensor, " timesteps"]:
        """All ``sigma_j``, float64, from 1 downwards (0 is not among them). The caller's own copy."""
        return _sigmas(self.shift, self.train_steps).clone()

    def timesteps(self) -> Float[Tensor, " timesteps"]:
        """All ``t_j = train_steps * sigma_j``, float64."""
        return self.train_steps * self.sigmas()

    def sigma(self, timestep: float) -> float:
        """Of the schedule's timestep nearest to ``timestep``."""
        return float(self.sigmas_at(torch.tensor([timestep], dtype=torch.float64))[0])

    def sigmas_at(self, timesteps: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Of the schedule's timestep nearest to each, on the device of ``timesteps``; float64 where that has it."""
        where = float64_device(timesteps.device)
        scheduled = self.timesteps().to(where)
        nearest = (scheduled - timesteps.to(where).double()[..., None]).abs().argmin(-1)
        found = scheduled[nearest] / self.train_steps
        return found.to(widest_dtype(timesteps.device)).to(timesteps.device)

    def warp(self, steps: Sequence[float]) -> tuple[float, ...]:
        """A published step list (``1000 750 500 250``) as timesteps of this schedule.

        A step ``s`` names entry ``train_steps - s`` of ``(t_0, ..., t_999, 0)``.

        Raises:
            ConfigError: a step that is not a whole number in ``[0, train_steps]``.
        """
        entries = [*self.timesteps().tolist(), 0.0]
        for step in steps:
            if not 0 <= step <= self.train_steps or step != int(step):
                raise ConfigError(
                    f"Step {step} cannot be warped; a step is a whole number from 0 to {self.train_steps}."
                )
        return tuple(entries[self.train_steps - int(step)] for step in steps)

    def training_weights(self) -> Float[Tensor, " timesteps"]:
        """Loss weight of each timestep: ``exp(-2 ((t - 500) / 1000)^2)``, less its minimum, summing to 1000."""
        t = self.timesteps()
        bump = torch.exp(-2 * ((t - self.train_steps / 2) / self.train_steps) ** 2)
        bump = bump - bump.min()
        return bump * (self.train_steps / bump.sum())


@functools.cache
def _sigmas(shift: float, train_steps: int) -> Tensor:
    u = 1 - torch.arange(train_steps, dtype=torch.float64) / train_steps
    return shift_sigma(u, shift)


@dataclass(frozen=True)
class StepPlan:
    """Timesteps of the denoising passes of a block, already warped.

    Attributes:
        timesteps: for every block, or for every block but the first generated one.
        first_block: for the first block that is generated, where it differs (Causal Forcing++). Conditioning frames
            before it are not generated.
    """

    timesteps: tuple[float, ...]
    first_block: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for timesteps in (self.timesteps, self.first_block or self.timesteps):
            falls = all(a > b for a, b in itertools.pairwise(timesteps))  # false for NaN, too
            if not timesteps or not falls or not timesteps[-1] > 0 or timesteps[0] == math.inf:
                raise ConfigError(
                    f"Got denoising steps {list(timesteps)}; give numbers that fall strictly and stay above 0, such as "
                    "1000 750 500 250."
                )

    @staticmethod
    def from_steps(
        steps: Sequence[float],
        first_block_steps: Sequence[float] | None = None,
        *,
        schedule: NoiseSchedule,
        warp: bool = True,
    ) -> "StepPlan":
        """From the step lists of a published config; ``warp`` is its ``warp_denoising_step``."""

        def warped(given: Sequence[float]) -> tuple[float, ...]:
            # Published lists may end in 0, which only marks the clean sample.
            noisy = [float(s) for s in given if s != 0]
            return schedule.warp(noisy) if warp else tuple(noisy)

        first = None if first_block_steps is None else warped(first_block_steps)
        return StepPlan(warped(steps), first)

    def of_block(self, number: int) -> tuple[float, ...]:
        """The timesteps of a block, counted from the first generated one (0)."""
        return self.first_block if number == 0 and self.first_block is not None else self.timesteps
