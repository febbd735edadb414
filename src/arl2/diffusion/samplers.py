"""From noise to a clean block: few-step re-noising (distilled students) and ODE solvers (multi-step models).

A sampler sees the model as ``predict(x, timestep) -> velocity`` and the noise as ``noise(j) -> tensor`` (0 is the
start, ``j`` the fresh noise of re-noising ``j - 1``), so it knows nothing of memory, prompts or seeds. It counts blocks
from the first one that is generated: conditioning frames before it need no sampler.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.diffusion.flow import add_noise, velocity_to_clean
from arl2.diffusion.schedule import NoiseSchedule, StepPlan, shift_sigma
from arl2.errors import ConfigError
from arl2.float64 import widest_dtype

if TYPE_CHECKING:
    from diffusers import UniPCMultistepScheduler

UniPC = Literal["unipc", "unipc-diffusers"]
Solver = Literal["euler", UniPC]
SOLVERS: tuple[str, ...] = get_args(Solver)
Predict = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]
PUBLISHED = NoiseSchedule()  # shift 5, 1000 training timesteps: all published AR students


class UniPCGrid(NamedTuple):
    """Whole timesteps of the denoising passes ``[steps]``, and sigmas ``[steps + 1]`` that end at 0."""

    timesteps: Tensor
    sigmas: Tensor


@dataclass(frozen=True)
class FewStep:
    """Predict, re-noise, predict: Self Forcing and Causal Forcing students.

    Attributes:
        plan: timesteps of the denoising passes.
        schedule: the noise schedule the model was trained on.
        first_block_fresh_below: at sigmas above it the first generated block keeps the noise that was predicted; 1
            always samples fresh noise, as published.
    """

    plan: StepPlan
    schedule: NoiseSchedule = PUBLISHED
    first_block_fresh_below: float = 1.0
    guidance_scale: ClassVar[float] = 1.0  # distilled students have their guidance inside

    def __post_init__(self) -> None:
        if not 0 <= self.first_block_fresh_below <= 1:
            raise ConfigError(f"Got first_block_fresh_below {self.first_block_fresh_below}; give a sigma from 0 to 1.")

    def timesteps_of(self, block: int) -> tuple[float, ...]:
        """Of the denoising passes of a block, counted from the first generated one."""
        return self.plan.of_block(block)

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block; ``block`` is counted from the first generated one."""
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
        solver: ``"euler"``; ``"unipc"`` with the grid of the published code; ``"unipc-diffusers"`` with diffusers' own.
    """

    steps: int = 50
    guidance_scale: float = 3.0
    schedule: NoiseSchedule = PUBLISHED
    solver: Solver = "euler"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.solver not in SOLVERS:
            raise ConfigError(
                f"Got {self.steps} steps of the solver {self.solver!r}; give steps >= 1 and one of "
                f"{', '.join(SOLVERS)}."
            )
        if not math.isfinite(self.guidance_scale):
            raise ConfigError(f"Got guidance_scale {self.guidance_scale}; give a finite number.")

    def timesteps_of(self, block: int) -> tuple[float, ...]:
        """Of the denoising passes, the same for every block."""
        if self.solver == "euler":
            sigmas = solver_sigmas(self.steps, self.schedule.shift)
            return tuple(self.schedule.train_steps * sigma for sigma in sigmas[:-1])
        shift, train_steps = self.schedule.shift, self.schedule.train_steps
        return tuple(map(float, _unipc(self.steps, shift, train_steps, self.solver).timesteps))

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block."""
        if self.solver == "euler":
            sigmas = solver_sigmas(self.steps, self.schedule.shift)
            return sample_euler(predict, noise, sigmas=sigmas, train_steps=self.schedule.train_steps)
        shift, train_steps = self.schedule.shift, self.schedule.train_steps
        return sample_unipc(predict, noise, steps=self.steps, shift=shift, train_steps=train_steps, solver=self.solver)


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
        wide = widest_dtype(x.device)
        x = (x.to(wide) + (following - sigma) * velocity.to(wide)).to(x.dtype)
    return x


def published_unipc_grid(steps: int, *, shift: float, train_steps: int) -> UniPCGrid:
    """The grid of the published ``FlowUniPCMultistepScheduler(shift=1)``, the shift applied in ``set_timesteps``.

    Before the shift, its sigmas fall evenly from ``1 - 1 / train_steps`` instead of 1; its timesteps drop the fraction.
    Of 50 timesteps at shift 5, 27 differ from those of diffusers' ``use_flow_sigmas``, by up to 4.
    """
    u = (1 - 1 / train_steps) * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    sigmas = shift_sigma(u, shift)
    return UniPCGrid((train_steps * sigmas).long(), torch.cat([sigmas, sigmas.new_zeros(1)]).float())


def sample_unipc(
    predict: Predict, noise: Noise, *, steps: int, shift: float, train_steps: int, solver: UniPC = "unipc"
) -> Float[Tensor, "batch channels frames height width"]:
    """UniPC, order 2, as the published multi-step models use it; diffusers' well-tested solver does the steps.

    Args:
        predict, noise: see above.
        steps, shift, train_steps: of the grid.
        solver: ``"unipc"`` for the grid of the published code, ``"unipc-diffusers"`` for that of diffusers.
    """
    x = noise(0)
    steps_of = _unipc(steps, shift, train_steps, solver)
    for timestep in steps_of.timesteps:
        x = steps_of.step(predict(x, float(timestep)), timestep, x, return_dict=False)[0]
    return x


def _unipc(steps: int, shift: float, train_steps: int, solver: UniPC) -> "UniPCMultistepScheduler":
    """A solver for one block."""
    from diffusers import UniPCMultistepScheduler

    made = UniPCMultistepScheduler(
        num_train_timesteps=train_steps,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=2,
    )
    made.set_timesteps(steps)
    if solver == "unipc":
        # Both are plain attributes in every version of diffusers; ``set_timesteps(sigmas=...)`` is not in all of them.
        made.timesteps, made.sigmas = published_unipc_grid(steps, shift=shift, train_steps=train_steps)
    made.set_begin_index(0)  # else, where the first two timesteps are equal, it would begin at the second
    return made
