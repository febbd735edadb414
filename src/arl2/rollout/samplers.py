"""How a block is denoised, as settings: few steps (distilled students) or many, with guidance."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from arl2.diffusion.levels import NoiseSchedule, StepPlan
from arl2.diffusion.samplers import Noise, Predict, sample_euler, sample_few_step, sample_unipc, solver_sigmas
from arl2.errors import ConfigError

PUBLISHED = NoiseSchedule()  # shift 5, 1000 levels: all published AR students


@dataclass(frozen=True)
class FewStep:
    """Predict, re-noise, predict: Self Forcing and Causal Forcing students.

    Attributes:
        plan: timesteps of the passes.
        schedule: the noise schedule the model was trained on.
    """

    plan: StepPlan
    schedule: NoiseSchedule = PUBLISHED
    guidance_scale: ClassVar[float] = 1.0  # distilled students have their guidance inside

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block."""
        return sample_few_step(predict, noise, levels=self.plan.of_block(block), schedule=self.schedule)


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

    def sample(self, predict: Predict, noise: Noise, block: int) -> Tensor:
        """The clean block."""
        shift, train_steps = self.schedule.shift, self.schedule.train_steps
        if self.solver == "unipc":
            return sample_unipc(predict, noise, steps=self.steps, shift=shift, train_steps=train_steps)
        return sample_euler(predict, noise, sigmas=solver_sigmas(self.steps, shift), train_steps=train_steps)


Sampler = FewStep | MultiStep
