"""The YAML configs of Self Forcing and Causal Forcing, as settings of generation.

Such a config describes a training run. A few of its keys say how the result is sampled; those are read, strictly, and
one warning names all the others.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arl2.errors import ConfigError
from arl2.files.regular import read_text
from arl2.files.strict_yaml import parse_yaml
from arl2.geometry import video_frames_of
from arl2.model.settings import TRAIN_STEPS, GenerationSettings, step_list

logger = logging.getLogger(__name__)

DEFAULTS_FILE = "default_config.yaml"
"""A config is laid over the file of this name beside it."""

_LARGEST = 1e30  # of numbers: beyond every setting, and short of what a float cannot hold
_SIZE_LIMIT = 1_000_000  # bytes; the published ones have two thousand
_SPATIAL_FACTOR, _TEMPORAL_FACTOR = 8, 4  # of Wan's codec: a config gives the size of latents
_WRAPPER_SHIFT = 8.0  # of the published model wrapper, where a config has no model_kwargs.timestep_shift
# Of models that are not distilled; their configs do not say.
_SOLVER: Literal["unipc"] = "unipc"
_SOLVER_STEPS = 50
_READ = (
    "denoising_step_list",
    "denoising_step_list_first_chunk",
    "warp_denoising_step",
    "num_frame_per_block",
    "independent_first_frame",
    "context_noise",
    "timestep_shift",
    "guidance_scale",
    "negative_prompt",
    "image_or_video_shape",
    "num_train_timestep",
    "seed",
)
# Keys that name the kind of generator; a causal one is "causal_video" and "causal_wan" there.
_KINDS = ("generator_task", "generator_type", "generator_name", "model_name", "trainer")
_READ_OF_MODEL = ("timestep_shift", "local_attn_size", "sink_size")


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """What a published config says about sampling.

    Attributes:
        path: the file.
        settings: of generation: few steps without guidance if the config lists steps, else a solver with guidance.
        block_frames: latent frames denoised together.
        window, sink: latent frames that softmax layers attend to, and the first ones that the window never evicts.
        seed: of the noise; None if it does not say.
        guidance_scale, negative_prompt: as written, None if it does not say. Distilled students were trained with
            them and are sampled without, so their ``settings`` have neither.
        ignored: keys that mean nothing here.
    """

    path: Path
    settings: GenerationSettings
    block_frames: int
    window: int | None
    sink: int
    seed: int | None
    guidance_scale: float | None
    negative_prompt: str | None
    ignored: tuple[str, ...]

    @property
    def model_settings(self) -> dict[str, Any]:
        """What no weights file holds: arguments for ``load_transformer``."""
        return {"block_frames": self.block_frames, "window": self.window, "sink": self.sink}


def read_published_config(path: str | Path) -> PublishedConfig:
    """Read a YAML config of Self Forcing or Causal Forcing, laid over the ``default_config.yaml`` beside it.

    Raises:
        ConfigError: a file that is no such config, or a value of a wrong kind; the message names key and file.
    """
    path = Path(path)
    values = _read_yaml(path)
    defaults = path.parent / DEFAULTS_FILE
    if path.name != DEFAULTS_FILE and defaults.is_file():
        values = _merged(_read_yaml(defaults), values)
    keys = _Keys(values, path)
    model = _Keys(keys.mapping("model_kwargs"), path, "model_kwargs.")
    _refuse_bidirectional(keys)
    _refuse_bidirectional(model)
    _refuse_other_schedules(keys)

    steps, first_steps = keys.steps("denoising_step_list"), keys.steps("denoising_step_list_first_chunk")
    if steps is None and first_steps is not None:
        raise ConfigError(f"{path}: denoising_step_list_first_chunk is given without denoising_step_list; add that.")
    block_frames = keys.whole("num_frame_per_block", least=1) or 1  # the published code's own default
    window = model.whole("local_attn_size", least=-1)
    window = None if window == -1 else window
    sink = (model.whole("sink_size", least=0) or 0) if window is not None else 0
    if window is not None and window < sink + block_frames:
        raise ConfigError(
            f"{path}: model_kwargs.local_attn_size {window} cannot hold sink_size {sink} and a block of "
            f"{block_frames}; use at least {sink + block_frames}, or -1 for the whole past."
        )
    distilled = steps is not None
    shift = _shift(keys, model, distilled=distilled)
    ignored = tuple(
        sorted(
            [name for name in values if name not in (*_READ, "model_kwargs")]
            + [f"model_kwargs.{name}" for name in model.values if name not in _READ_OF_MODEL]
        )
    )
    if ignored:
        logger.warning("%s: these keys mean nothing here and are ignored: %s", path, ", ".join(ignored))
    guidance_scale, negative_prompt = keys.number("guidance_scale"), keys.text("negative_prompt")
    context_noise = keys.number("context_noise", least=0.0, most=TRAIN_STEPS) or 0.0
    return PublishedConfig(
        path=path,
        settings=GenerationSettings(
            steps=steps or GenerationSettings.steps,
            first_block_steps=first_steps,
            # As the published defaults say, where a config does not.
            warp_steps=bool(keys.flag("warp_denoising_step")) or not distilled,
            shift=shift,
            solver="few-step" if distilled else _SOLVER,
            solver_steps=_SOLVER_STEPS,
            guidance_scale=1.0 if distilled or guidance_scale is None else guidance_scale,
            negative_prompt="" if distilled else negative_prompt or "",
            context_noise=context_noise if distilled else 0.0,  # the published solver commits every block at timestep 0
            first_block_frames=1 if keys.flag("independent_first_frame") and block_frames > 1 else None,
            window=window,
            **_picture(keys),
        ),
        block_frames=block_frames,
        window=window,
        sink=sink,
        seed=keys.whole("seed", least=0),
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        ignored=ignored,
    )


class _Keys:
    """Values of a config, each read as a given kind; null means that it is not set."""

    def __init__(self, values: Mapping[str, Any], path: Path, prefix: str = "") -> None:
        self.values, self.path, self.prefix = values, path, prefix

    def refuse(self, name: str, accepted: str) -> ConfigError:
        shown = repr(self.values[name])
        return ConfigError(f"{self.path}: {self.prefix}{name} is {shown[:80]}; give {accepted}.")

    def whole(self, name: str, *, least: int) -> int | None:
        value = self.values.get(name)
        if value is not None and (type(value) is not int or value < least):
            raise self.refuse(name, f"a whole number from {least}")
        return value

    def number(self, name: str, *, least: float | None = None, most: float = math.inf) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        is_number = type(value) in (int, float) and abs(value) < _LARGEST
        if not is_number or (value <= 0 if least is None else value < least) or value > most:
            accepted = "a number above 0" if least is None else f"a number from {least:g}"
            raise self.refuse(name, accepted if most == math.inf else f"{accepted} to {most:g}")
        return float(value)

    def flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and type(value) is not bool:
            raise self.refuse(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.refuse(name, "a text, in quotes")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise self.refuse(name, "names and values")
        return value

    def steps(self, name: str) -> tuple[int, ...] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.refuse(name, "a list of whole numbers that falls, such as [1000, 750, 500, 250]")
        try:
            steps = step_list(name, value)
        except ConfigError as error:
            accepted = f"a list that falls from at most {TRAIN_STEPS} to above 0, such as [1000, 750, 500, 250]"
            raise self.refuse(name, accepted) from error
        return steps[:-1] if steps[-1] == 0 else steps  # at 0 there is nothing to denoise


def _picture(keys: _Keys) -> dict[str, Any]:
    """Height, width and number of video frames: the latents are ``[batch, frames, channels, height, width]``."""
    name = "image_or_video_shape"
    shape = keys.values.get(name)
    if shape is None:
        return {}
    if not isinstance(shape, list) or len(shape) != 5 or not all(type(n) is int and 1 <= n <= 100_000 for n in shape):
        raise keys.refuse(name, "five whole numbers: batch, frames, channels, height and width of the latents")
    _, frames, _, height, width = shape
    return {
        "height": _SPATIAL_FACTOR * height,
        "width": _SPATIAL_FACTOR * width,
        "num_frames": video_frames_of(0, frames, _TEMPORAL_FACTOR),
    }


def _shift(keys: _Keys, model: _Keys, *, distilled: bool) -> float:
    """Of the schedule that samples: the wrapper's own for few steps, that of training for the solver, as published."""
    own, trained = model.number("timestep_shift"), keys.number("timestep_shift")
    if not distilled:
        return trained or own or _WRAPPER_SHIFT
    if own is None and trained not in (None, _WRAPPER_SHIFT):
        logger.warning(
            "%s: timestep_shift %g is of training alone. The published code samples with model_kwargs.timestep_shift, "
            "%g if that is missing, and so does this; add it to model_kwargs if you mean it.",
            keys.path,
            trained,
            _WRAPPER_SHIFT,
        )
    return own or _WRAPPER_SHIFT


def _refuse_bidirectional(keys: _Keys) -> None:
    """Refuse models that see all frames of a video at once."""
    found = [name for name in ("causal", "is_causal") if keys.values.get(name) is False]
    for name in _KINDS:
        kind = keys.values.get(name)
        if isinstance(kind, str) and (
            "bidirectional" in kind
            or (name == "generator_task" and kind != "causal_video")
            or (name in ("generator_name", "model_name") and kind == "wan")  # beside "causal_wan"
        ):
            found.append(name)
    if found:
        raise ConfigError(
            f"{keys.path}: {keys.prefix}{found[0]} is {keys.values[found[0]]!r:.80}, so this is a bidirectional model, "
            "which denoises all frames of a video together. Here they are generated block by block; give the config of "
            "a causal model (generator_task: causal_video)."
        )


def _refuse_other_schedules(keys: _Keys) -> None:
    if keys.whole("num_train_timestep", least=1) not in (None, TRAIN_STEPS):
        raise keys.refuse("num_train_timestep", f"{TRAIN_STEPS}, as all published models have")


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, limit=_SIZE_LIMIT)
    try:
        content = parse_yaml(text, aliases=True)
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML ({error}); give a config of a published model.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path} holds {type(content).__name__}; a config has names and values.")
    return content


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` wins; what both have as names and values is merged in turn."""
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            merged[name] = _merged(below[name], above[name])
    return merged
