"""How a block is denoised, as settings: few steps (distilled students) or many, with guidance."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from arl2.diffusion.samplers import Noise, Predict, sample_euler, sample_few_step, sample_unipc, solver_sigmas
from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.errors import ConfigError

PUBLISHED = NoiseSchedule()  # shift 5, 1000 levels: all published AR students


@dataclass(frozen=True)
class FewStep:
    """Predict, re-noise, predict: Self Forcing and Causal Forcing students.

    Attributes:
        plan: timesteps of the passes.
        schedule: the noise schedule the model was trained on.
        first_block_fresh_below: from noise levels above it the first block keeps the noise that was predicted; 1 draws
            fresh noise at every level, as published.
    """

    plan: StepPlan
    schedule: NoiseSchedule = PUBLISHED
    first_block_fresh_below: float = 1.0
    guidance_scale: ClassVar[float] = 1.0  # distilled students have their guidance inside

    def levels_of(self, block: int) -> tuple[float, ...]:
        """Timesteps of the denoising passes of a block."""
        return tuple(self.plan.of_block(block))

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block."""
        return sample_few_step(
            predict,
            noise,
            levels=self.plan.of_block(block),
            schedule=self.schedule,
            fresh_below=1.0 if block else self.first_block_fresh_below,
        )


@dataclass(frozen=True)
class MultiStep:
    """An ODE solver over the shifted schedule, with classifier-free guidance: models that are not distilled.

    Attributes:
        steps: denoising steps a block.
        guidance_scale: ``v = v_neg + scale (v_prompt - v_neg)``; 1 needs no negative prompt.
        schedule: the noise schedule the model was trained on.
        solver: ``"euler"`` or ``"unipc"``.
    """

    steps: int = 50
    guidance_scale: float = 3.0
    schedule: NoiseSchedule = PUBLISHED
    solver: Literal["euler", "unipc"] = "euler"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.solver not in ("euler", "unipc"):
            raise ConfigError(
                f'A multi-step sampler needs steps >= 1 and the solver "euler" or "unipc"; '
                f"got {self.steps} and {self.solver!r}."
            )

    def levels_of(self, block: int) -> tuple[float, ...]:
        """Timesteps of the denoising passes, the same for every block."""
        return tuple(self.schedule.train_steps * sigma for sigma in solver_sigmas(self.steps, self.schedule.shift)[:-1])

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block."""
        shift, train_steps = self.schedule.shift, self.schedule.train_steps
        if self.solver == "unipc":
            return sample_unipc(predict, noise, steps=self.steps, shift=shift, train_steps=train_steps)
        return sample_euler(predict, noise, sigmas=solver_sigmas(self.steps, shift), train_steps=train_steps)


PlainSampler = FewStep | MultiStep

# Called after every denoising pass with the block, the pass within it, the timestep and the noisy latents of the pass.
OnStep = Callable[[int, int, float, Tensor], None]


@dataclass(frozen=True)
class Watched:
    """Another sampler, and someone who is told of every denoising pass."""

    inner: PlainSampler
    on_step: OnStep

    @property
    def guidance_scale(self) -> float:
        """The inner sampler's."""
        return self.inner.guidance_scale

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block."""
        passes = itertools.count()

        def told(x: Tensor, timestep: float) -> Tensor:
            velocity = predict(x, timestep)
            self.on_step(block, next(passes), timestep, x)
            return velocity

        return self.inner.sample(told, noise, block)


Sampler = PlainSampler | Watched
