"""From noise to a clean block: few-step re-noising (distilled students) and ODE solvers (multi-step models).

A sampler sees the model as ``predict(x, timestep) -> velocity`` and the noise as ``noise(j) -> tensor`` (0 is the
start, ``j`` the fresh noise of re-noising ``j - 1``), so it knows nothing of memory, prompts or seeds.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.diffusion.flow import add_noise, velocity_to_clean
from arl2.diffusion.schedule import NoiseSchedule, StepPlan, shift_sigma
from arl2.errors import ConfigError

Predict = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]
PUBLISHED = NoiseSchedule()  # shift 5, 1000 training timesteps: all published AR students


@dataclass(frozen=True)
class FewStep:
    """Predict, re-noise, predict: Self Forcing and Causal Forcing students.

    Attributes:
        plan: timesteps of the denoising passes.
        schedule: the noise schedule the model was trained on.
        first_block_fresh_below: at sigmas above it the first block keeps the noise that was predicted; 1 always samples
            fresh noise, as published.
    """

    plan: StepPlan
    schedule: NoiseSchedule = PUBLISHED
    first_block_fresh_below: float = 1.0
    guidance_scale: ClassVar[float] = 1.0  # distilled students have their guidance inside

    def timesteps_of(self, block: int) -> tuple[float, ...]:
        """Of the denoising passes of a block."""
        return tuple(self.plan.of_block(block))

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block."""
        return sample_few_step(
            predict,
            noise,
            timesteps=self.plan.of_block(block),
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
                f'Got {self.steps} steps of the solver {self.solver!r}; give steps >= 1 and "euler" or "unipc".'
            )

    def timesteps_of(self, block: int) -> tuple[float, ...]:
        """Of the denoising passes, the same for every block."""
        return tuple(self.schedule.train_steps * sigma for sigma in solver_sigmas(self.steps, self.schedule.shift)[:-1])

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block."""
        shift, train_steps = self.schedule.shift, self.schedule.train_steps
        if self.solver == "unipc":
            return sample_unipc(predict, noise, steps=self.steps, shift=shift, train_steps=train_steps)
        return sample_euler(predict, noise, sigmas=solver_sigmas(self.steps, shift), train_steps=train_steps)


def sample_few_step(
    predict: Predict,
    noise: Noise,
    *,
    timesteps: Sequence[float],
    schedule: NoiseSchedule,
    fresh_below: float = 1.0,
) -> Float[Tensor, "batch channels frames height width"]:
    """Predict the clean block, re-noise it to the next timestep, and so on; the last prediction is the result.

    Args:
        predict, noise: see above.
        timesteps: falling.
        schedule: gives their sigmas.
        fresh_below: at sigmas above it the noise that was predicted is kept (a step of DDIM, arXiv 2010.02502), at
            others fresh noise is sampled. 1: always fresh, as the published few-step students.
    """
    x = noise(0)
    for j, timestep in enumerate(timesteps):
        sigma = schedule.sigma(timestep)
        velocity = predict(x, timestep)
        clean = velocity_to_clean(x, velocity, sigma)
        if j + 1 == len(timesteps):
            return clean
        kept = sigma > fresh_below
        renoise = clean + velocity.to(clean.dtype) if kept else noise(j + 1)
        x = add_noise(clean, renoise, schedule.sigma(timesteps[j + 1]))
    raise AssertionError("StepPlan guarantees at least one timestep")


def solver_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """``steps + 1`` shifted sigmas from 1 to 0, evenly spaced before the shift."""
    u = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    return tuple(shift_sigma(u, shift).tolist())


def sample_euler(
    predict: Predict, noise: Noise, *, sigmas: Sequence[float], train_steps: int
) -> Float[Tensor, "batch channels frames height width"]:
    """Explicit Euler along the flow, from ``sigmas[0]`` (1: pure noise) to ``sigmas[-1]`` (0)."""
    x = noise(0)
    for sigma, following in itertools.pairwise(sigmas):
        velocity = predict(x, train_steps * sigma)
        x = (x.double() + (following - sigma) * velocity.double()).to(x.dtype)
    return x


def sample_unipc(
    predict: Predict, noise: Noise, *, steps: int, shift: float, train_steps: int
) -> Float[Tensor, "batch channels frames height width"]:
    """UniPC, order 2, as the published multi-step models use it; diffusers' well-tested solver does the steps."""
    from diffusers import UniPCMultistepScheduler

    solver = UniPCMultistepScheduler(
        num_train_timesteps=train_steps,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=2,
    )
    x = noise(0)
    solver.set_timesteps(steps, device=x.device)
    for timestep in solver.timesteps:
        x = solver.step(predict(x, float(timestep)), timestep, x, return_dict=False)[0]
    return x
