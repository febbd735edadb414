"""How a model is sampled: ``generation.json`` beside its weights, and part of its card. Importing loads no torch."""

import itertools
import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from arl2.errors import ConfigError
from arl2.files.numbers import MAX_WHOLE as MAX_WHOLE
from arl2.files.numbers import whole as whole
from arl2.files.records import record_from_mapping

if TYPE_CHECKING:
    from arl2.diffusion.samplers import FewStep, MultiStep

ChangeMode = Literal["soft", "refresh", "cut"]
CHANGE_MODES: tuple[str, ...] = get_args(ChangeMode)
TRAIN_STEPS = 1000  # of the noise schedule of all published models, and the timestep of full noise
MAX_SEED = 2**64 - 1
_MAX_CANDIDATES = 256  # they are sampled side by side, so the memory grows with their number
_MAX_FPS = 1000
_OTHER_SIZE = 1.5  # times the pixels of the model's own size, either way


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Defaults of sampling; those of this class are the published chunkwise students'.

    The size of a block is not among them: it belongs to the model (``block_frames`` of its config).

    Attributes:
        steps: Denoising steps of a block, on the unshifted scale from 1000 down, as published configs list them.
        first_block_steps: Of the first block that is generated, also after conditioning frames, where it differs.
        first_block_fresh_below: Sigma, 0 to 1. At sigmas above it the first generated block keeps the noise that was
            predicted, so that its early decisions stay; 1 always samples fresh noise, as published.
        first_block_candidates: First blocks sampled side by side; the model's reward model keeps the one that fits the
            prompt best (best-of-N). 1 needs no reward model. After conditioning frames there are no candidates.
        warp_steps: Map the steps onto the shifted schedule; otherwise they are timesteps already.
        shift: Of the noise schedule that the model was trained on.
        solver: ``"few-step"`` predicts and re-noises along ``steps`` (distilled students). The others solve the ODE in
            ``solver_steps`` steps (models that are not distilled): ``"euler"``, ``"unipc"`` with the grid of the
            published code, ``"unipc-diffusers"`` with that of diffusers.
        solver_steps: Denoising steps of an ODE solver.
        guidance_scale: Of classifier-free guidance with an ODE solver; 1 switches it off.
        negative_prompt: What guidance steers away from; the empty prompt is one, too.
        context_noise: Timestep of the cache-update pass of generated blocks, 0 to 1000; conditioning frames are
            committed at 0.
        first_block_frames: Latent frames of the first block, where it differs.
        window: Latent frames that softmax layers attend to, the current block included; None for the whole past.
        prompt_change: What a new prompt does to a stream, see :mod:`arl2.streams.prompt_change`.
        refresh_decay: Factor on the recurrent states before ``"refresh"`` commits the last latents again.
        height, width: Of the video in pixels.
        num_frames: Video frames.
        fps: Video frames a second.
    """

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    first_block_steps: tuple[int, ...] | None = None
    first_block_fresh_below: float = 1.0
    first_block_candidates: int = 1
    warp_steps: bool = True
    shift: float = 5.0
    solver: Literal["few-step", "euler", "unipc", "unipc-diffusers"] = "few-step"
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
            "solver_steps",
            "first_block_frames",
            "window",
            "height",
            "width",
            "num_frames",
        ):
            value = getattr(self, name)
            if value is not None:
                whole(name, value, least=1)
        whole("fps", self.fps, least=1, most=_MAX_FPS)
        candidate_count(self.first_block_candidates)
        for name in ("first_block_fresh_below", "refresh_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Got {name} {getattr(self, name)}; give a number from 0 to 1.")
        if not 0 < self.shift < math.inf:
            raise ConfigError(f"Got shift {self.shift}; give a finite number above 0.")
        finite("guidance_scale", self.guidance_scale)
        context_timestep(self.context_noise)
        if self.solver == "few-step" and self.guidance_scale != 1.0:
            raise ConfigError(
                f"Got guidance_scale {self.guidance_scale:g} for a few-step student, which is distilled with its "
                "guidance inside; leave guidance_scale out, or use a multi-step model."
            )
        step_list("steps", self.steps)
        if self.first_block_steps is not None:
            step_list("first_block_steps", self.first_block_steps)

    def with_steps(self, steps: int | Sequence[int] | None) -> "GenerationSettings":
        """The same with other denoising steps for every block: a list, or a number, spread evenly; None: unchanged.

        Raises:
            ConfigError: steps that do not fall from at most 1000 to above 0, or a list for an ODE solver.
        """
        if steps is None:
            return self
        if self.solver == "few-step":
            chosen = _even(whole("steps", steps, least=1, most=TRAIN_STEPS)) if isinstance(steps, int) else tuple(steps)
            return replace(self, steps=chosen, first_block_steps=None)
        if not isinstance(steps, int):
            raise ConfigError(f"Got steps {list(steps)}; the {self.solver} solver takes a number of steps, such as 50.")
        return replace(self, solver_steps=steps)

    def sampler(self, steps: int | Sequence[int] | None = None) -> "FewStep | MultiStep":
        """The sampler of these settings; arguments and errors as for ``with_steps``."""
        from arl2.diffusion.samplers import FewStep, MultiStep
        from arl2.diffusion.schedule import NoiseSchedule, StepPlan

        chosen = self.with_steps(steps)
        schedule = NoiseSchedule(shift=chosen.shift)
        if chosen.solver != "few-step":
            return MultiStep(chosen.solver_steps, chosen.guidance_scale, schedule, chosen.solver)
        plan = StepPlan.from_steps(chosen.steps, chosen.first_block_steps, schedule=schedule, warp=chosen.warp_steps)
        return FewStep(plan, schedule, chosen.first_block_fresh_below)

    def told_of_size(self, height: int, width: int) -> str | None:
        """A warning for people about a size, in pixels, that is far from these settings' own; None for one near it."""
        ratio = height * width / (self.height * self.width)
        if 1 / _OTHER_SIZE < ratio < _OTHER_SIZE:
            return None
        return (
            f"This model makes videos of {self.width} x {self.height} pixels; at {width} x {height} they may be wrong, "
            "such as a lattice. To enlarge a video, use scale (--scale)."
        )

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return json.loads(json.dumps({field.name: getattr(self, field.name) for field in fields(self)}))


def settings_from_mapping(values: Mapping[str, Any], *, where: str) -> GenerationSettings:
    """The inverse of ``to_mapping``; ``where`` is what errors call the source.

    Raises:
        ConfigError: an unknown name, a value of another type, or one out of range.
    """
    return record_from_mapping(GenerationSettings, values, where=where)


def finite(name: str, value: Any) -> float:
    """A number that is neither NaN nor infinite.

    Raises:
        ConfigError: something else.
    """
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"Got {name} {value!r:.80}; give a finite number.")
    return number


def context_timestep(value: Any) -> float:
    """The timestep of a cache-update pass; ``ConfigError`` for anything but a number from 0 to 1000."""
    if not 0 <= finite("context_noise", value) <= TRAIN_STEPS:
        raise ConfigError(f"Got context_noise {value!r:.80}; give a timestep from 0 to {TRAIN_STEPS}.")
    return float(value)


def seed_number(value: Any, *, name: str = "seed") -> int:
    """One seed; ``ConfigError`` for anything but a whole number from 0 to 2**64 - 1."""
    return whole(name, value, least=0, most=MAX_SEED)


def candidate_count(value: Any) -> int:
    """A number of first blocks to choose from; ``ConfigError`` for anything but a whole number from 1 to 256."""
    return whole("first_block_candidates", value, least=1, most=_MAX_CANDIDATES)


def step_list(name: str, steps: Any) -> tuple[int, ...]:
    """Denoising steps in the order they are taken; a 0 at the end, as older configs have it, needs no pass.

    Raises:
        ConfigError: not whole numbers that fall from at most 1000 to above 0.
    """
    values = list(steps) if isinstance(steps, Iterable) and not isinstance(steps, str) else []
    try:
        given = tuple(operator.index(step) for step in values)
    except TypeError:
        given = ()
    noisy = given[:-1] if given[-1:] == (0,) else given
    falls = all(after < before for before, after in itertools.pairwise(noisy))
    if not noisy or not falls or not 0 < noisy[-1] <= noisy[0] <= TRAIN_STEPS:
        raise ConfigError(
            f"Got {name} {values or steps!r:.80}; give whole numbers that fall from at most {TRAIN_STEPS} to above 0, "
            "such as 1000,750,500,250."
        )
    return given


def _even(count: int) -> tuple[int, ...]:
    return tuple(round(TRAIN_STEPS * (count - i) / count) for i in range(count))
