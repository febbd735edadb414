"""What to sample: one object that a command line, a server and Python fill in alike. Importing this loads no torch.

An option is one field here (and its type among the keywords): commands take it from here, the pipeline hands it on
whole, and :mod:`arl2.streams.request` puts it into effect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

from arl2.attention.plan import SINK_POSITIONS, SinkPositions
from arl2.errors import ConfigError
from arl2.model.settings import (
    GenerationSettings,
    candidate_count,
    context_timestep,
    finite,
    seed_number,
    step_list,
    whole,
)

Window = int | Literal["settings"] | None
Seeds = int | Sequence[int] | None
# Options that replace the setting of the same name as they are.
_IN_SETTINGS = (
    "num_frames",
    "height",
    "width",
    "first_block_candidates",
    "negative_prompt",
    "guidance_scale",
    "context_noise",
)


class SamplingKeywords(TypedDict, total=False):
    """The fields of :class:`SamplingOptions`, as keywords of the pipeline."""

    num_frames: int | None
    height: int | None
    width: int | None
    seed: Seeds
    steps: int | Sequence[int] | None
    first_block_candidates: int | None
    window: Window
    sink: int | None
    sink_positions: SinkPositions | None
    negative_prompt: str | None
    guidance_scale: float | None
    context_noise: float | None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to sample. None means the model's own setting, except for ``window``, where None is the whole past.

    Values of another type or out of range raise ``ConfigError``; whether they fit a model is checked with the model.

    Attributes:
        num_frames: Video frames to generate, conditioning frames included.
        height: Height of the video in pixels.
        width: Width of the video in pixels.
        seed: Random seed of the first prompt; the next prompts get seed + 1, seed + 2 and so on. In Python also one
            seed for each.
        steps: Denoising steps of a block: a number, spread evenly, or a list of timesteps such as 1000,750,500,250.
        first_block_candidates: First blocks to sample side by side; the reward model keeps the best (best-of-N). After
            conditioning frames the first generated block is a single sample.
        window: Latent frames that softmax layers attend to; None for the whole past, "settings" for the model's own.
        sink: First latent frames that the window never evicts.
        sink_positions: Whether sinks keep their own positions ("absolute") or move with the window ("relative").
        negative_prompt: What guidance steers away from (multi-step models only).
        guidance_scale: Strength of classifier-free guidance (multi-step models only); 1 switches it off.
        context_noise: Timestep of the cache-update pass of generated blocks, 0 to 1000; conditioning frames always have
            0.
    """

    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int | Sequence[int] | None = None
    steps: int | Sequence[int] | None = None
    first_block_candidates: int | None = None
    window: Window = "settings"
    sink: int | None = None
    sink_positions: SinkPositions | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    context_noise: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, _checked(field.name, value))

    def over(self, settings: GenerationSettings) -> GenerationSettings:
        """A model's settings with these options applied.

        Raises:
            ConfigError: options that do not go with the settings, such as guidance of a few-step student.
        """
        given = {name: getattr(self, name) for name in _IN_SETTINGS if getattr(self, name) is not None}
        window = settings.window if self.window == "settings" else self.window
        return replace(settings.with_steps(self.steps), window=window, **given)


def _checked(name: str, value: Any) -> Any:
    """The value, validated and converted to built-in types."""
    if name in ("num_frames", "height", "width"):
        return whole(name, value, least=1)
    if name == "first_block_candidates":
        return candidate_count(value)
    if name == "sink":
        return whole(name, value, least=0)
    if name == "window":
        return value if isinstance(value, str) and value == "settings" else whole(name, value, least=1)
    if name == "seed":
        return plain_seeds(value)
    if name == "steps":
        return step_list(name, value) if _is_list(value) else whole(name, value, least=1)
    if name == "guidance_scale":
        return finite(name, value)
    if name == "context_noise":
        return context_timestep(value)
    if name == "sink_positions" and not (isinstance(value, str) and value in SINK_POSITIONS):
        raise ConfigError(f"Got sink_positions {value!r:.80}; give {' or '.join(SINK_POSITIONS)}.")
    if name == "negative_prompt" and not isinstance(value, str):
        raise ConfigError(f"Got negative_prompt {value!r:.80}; give text.")
    return value


def plain_seeds(value: Any) -> int | tuple[int, ...]:
    """A seed, or several, as Python's own numbers; ``ConfigError`` for one outside 0 to 2**64 - 1."""
    return tuple(map(seed_number, value)) if _is_list(value) else seed_number(value)


def _is_list(value: Any) -> bool:
    try:  # arrays without dimensions have __iter__ as well, and refuse it
        iter(value)
    except TypeError:
        return False
    return not isinstance(value, str | bytes | Mapping)
