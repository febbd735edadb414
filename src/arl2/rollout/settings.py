"""How a model is sampled: levels, window, picture size and rate, saved as ``generation.json`` beside the weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.errors import ConfigError
from arl2.files.plain import read_json as read_json  # for those who read the files of a pipeline's folder
from arl2.files.records import record_from_mapping
from arl2.rollout.samplers import FewStep, MultiStep, PlainSampler

ChangeMode = Literal["soft", "refresh", "cut"]
CHANGE_MODES: tuple[str, ...] = get_args(ChangeMode)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of generation; the defaults are those of the published chunkwise students.

    The size of a block is not among them: it belongs to the model (``block_frames`` of its config).

    Attributes:
        steps: denoising steps of a block, on the unshifted scale from 1000 down, as published configs list them.
        first_block_steps: for the first block of a stream, where it differs.
        first_block_fresh_below: noise level, 0 to 1. From levels above it the first block keeps the noise that was
            predicted, so that what it settles on early stays; 1 draws fresh noise always, as published.
        first_block_candidates: first blocks drawn side by side, of which the model's verifier keeps the one that fits
            the prompt best; 1 draws it once and needs no verifier.
        warp_steps: map the steps onto the shifted schedule; otherwise they are timesteps already.
        shift: of the noise schedule the model was trained on.
        solver: ``"few-step"``: predict and re-noise along ``steps`` (distilled students); ``"euler"`` or ``"unipc"``:
            an ODE solver over ``solver_steps`` levels (models that are not distilled).
        solver_steps: of an ODE solver, a block.
        guidance_scale: of classifier-free guidance with an ODE solver; 1 is none.
        negative_prompt: what guidance leads away from.
        context_noise: timestep of the clean pass.
        first_block_frames: latent frames of the first block, where it differs.
        window: latent frames visible to softmax layers, current block included; None sees the whole past.
        prompt_change: what a new prompt does to a stream, see :mod:`arl2.streams.prompt_change`.
        refresh_decay: what recurrent states are multiplied by before ``"refresh"`` commits the last latents again.
        height, width: of the picture, in pixels.
        num_frames: video frames, unless a call says otherwise.
        fps: video frames a second.
    """

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    first_block_steps: tuple[int, ...] | None = None
    first_block_fresh_below: float = 1.0
    first_block_candidates: int = 1
    warp_steps: bool = True
    shift: float = 5.0
    solver: Literal["few-step", "euler", "unipc"] = "few-step"
    solver_steps: int = 50
    guidance_scale: float = 1.0
    negative_prompt: str = ""
    context_noise: float = 0.0
    first_block_frames: int | None = None
    window: int | None = None
    prompt_change: ChangeMode = "refresh"
    refresh_decay: float = 0.9
    height: int = 480
    width: int = 832
    num_frames: int = 81
    fps: int = 16

    def __post_init__(self) -> None:
        for name in (
            "first_block_candidates",
            "first_block_frames",
            "window",
            "height",
            "width",
            "num_frames",
            "fps",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; give a whole number from 1.")
        if not 0 <= self.first_block_fresh_below <= 1:
            raise ConfigError(
                f"first_block_fresh_below is {self.first_block_fresh_below}; give a noise level from 0 to 1."
            )
        if not 0 <= self.refresh_decay <= 1:
            raise ConfigError(f"refresh_decay is {self.refresh_decay}; give a factor from 0 to 1.")
        if self.solver == "few-step" and self.guidance_scale != 1.0:
            raise ConfigError(
                f"guidance_scale is {self.guidance_scale} but few-step students have their guidance inside; "
                'leave it at 1, or choose the solver "euler" or "unipc".'
            )
        self.sampler()  # refuses levels and shifts that cannot be

    def sampler(self, steps: int | Sequence[int] | None = None) -> PlainSampler:
        """The sampler of these settings.

        Args:
            steps: instead of the settings' own, for every block: a step list, or a number of steps, spread evenly.

        Raises:
            ConfigError: no steps, steps that do not fall from at most 1000 to above 0, or a list for an ODE solver.
        """
        schedule = NoiseSchedule(shift=self.shift)
        if self.solver != "few-step":
            count = self.solver_steps if steps is None else steps
            if not isinstance(count, int):
                raise ConfigError(f"The {self.solver} solver spreads its levels itself; give it a number of steps.")
            return MultiStep(count, self.guidance_scale, schedule, self.solver)
        first_block_steps = self.first_block_steps
        if steps is None:
            chosen: Sequence[int] = self.steps
        else:
            chosen, first_block_steps = _step_list(steps, schedule.train_steps), None
        plan = StepPlan.from_steps(chosen, first_block_steps, schedule=schedule, warp=self.warp_steps)
        return FewStep(plan, schedule, self.first_block_fresh_below)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return json.loads(json.dumps({field.name: getattr(self, field.name) for field in fields(self)}))


def _step_list(steps: int | Sequence[int], train_steps: int) -> Sequence[int]:
    if not isinstance(steps, int):
        return steps
    if not 1 <= steps <= train_steps:
        raise ConfigError(f"{steps} denoising steps were asked; give 1 to {train_steps}, or a list such as 1000 500.")
    return [round(train_steps * (steps - i) / steps) for i in range(steps)]


def settings_from_mapping(values: Mapping[str, Any], *, where: str) -> GenerationSettings:
    """Strict: a name that does not exist, or a value of another type, is an error that names ``where`` it came from.

    Raises:
        ConfigError: as said, or values that cannot be.
    """
    return record_from_mapping(GenerationSettings, values, where=where)
