"""What a client asks for, as a form's text fields, checked against the model before any work."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arl2.errors import Arl2Error, suggestion
from arl2.streams.options import SamplingOptions

# OpenAI's fields, then those that vLLM-Omni adds.
FIELDS = (
    "prompt",
    "model",
    "size",
    "seconds",
    "width",
    "height",
    "num_frames",
    "fps",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
)
_MOST_WORDS, _MOST_LETTERS = 1000, 20_000  # of a prompt
_SIZE = re.compile(r"(?P<width>[0-9]{1,5})x(?P<height>[0-9]{1,5})")
_WHOLE = re.compile(r"[0-9]{1,20}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?")


class FieldError(Arl2Error):
    """A field of a request that cannot be accepted.

    Args:
        message: a sentence.
        param: the field.
        code: in one word, for programs.
    """

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.code = param, code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.param, self.code)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model makes by default.

    Attributes:
        name: that clients know it by.
        width, height: of its pictures as they are made.
        enlarged: most whole number by which they are enlarged for the file; the default, too.
        fps, frames: of its videos.
    """

    name: str
    width: int
    height: int
    enlarged: int
    fps: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class VideoOrder:
    """A video to make.

    Attributes:
        prompt: what it shows.
        width, height: of the pictures that the model makes.
        scale: how much the file enlarges them.
        frames: video frames; of an extension those that are added.
        seed: None: one is drawn.
        options: other sampling options by name.
    """

    prompt: str
    width: int
    height: int
    scale: int
    frames: int
    seed: int | None
    options: dict[str, Any]


def read_order(fields: Mapping[str, str], model: ModelFacts, *, most_seconds: float) -> VideoOrder:
    """Check and convert a form's fields.

    Args:
        fields: by name, as text.
        model: whose defaults fill in what is missing.
        most_seconds: of the longest video that is made.

    Raises:
        FieldError: an unknown field, a value that is none, or one too large; it is named.
    """
    for name in fields:
        if name not in FIELDS:
            raise FieldError(f"Unknown field '{name:.80}'. {suggestion(name, FIELDS)}", name[:80], "unknown_parameter")
    asked = fields.get("model", "")
    if asked and asked != model.name:
        raise FieldError(
            f"The model '{asked:.80}' is not served here; leave model out, or give '{model.name}'.",
            "model",
            "model_not_found",
        )
    prompt = checked_prompt(fields.get("prompt"))
    width, height, scale = _size(fields, model)
    return VideoOrder(
        prompt=prompt,
        width=width,
        height=height,
        scale=scale,
        frames=_frames(fields, model, most_seconds),
        seed=_whole(fields, "seed", 0, 2**64 - 1),
        options=_options(fields),
    )


def checked_prompt(prompt: str | None) -> str:
    """The prompt as it is; ``FieldError`` for none, an empty one, or one that is longer than any model reads."""
    if prompt is None or not prompt.strip():
        raise FieldError("The prompt is empty; say what the video shows.", "prompt")
    if len(prompt) > _MOST_LETTERS or len(prompt.split()) > _MOST_WORDS:
        raise FieldError(
            f"The prompt has {len(prompt.split()):,} words and {len(prompt):,} letters; give at most {_MOST_WORDS:,} "
            f"words and {_MOST_LETTERS:,} letters.",
            "prompt",
        )
    return prompt


def seconds_of(frames: int, fps: int) -> str:
    """As OpenAI's format says it: ``"4"``, or ``"5.06"``."""
    return f"{frames / fps:.2f}".rstrip("0").rstrip(".")


def _size(fields: Mapping[str, str], model: ModelFacts) -> tuple[int, int, int]:
    """Width and height that the model makes, and how much they are enlarged."""
    whole = {name: _whole(fields, name, 1, 16_384) for name in ("width", "height")}
    if fields.get("size", ""):
        if any(value is not None for value in whole.values()):
            raise FieldError("Got size beside width or height; give either size, or width and height.", "size")
        found = _SIZE.fullmatch(fields["size"])
        if found is None:
            raise FieldError(
                f"Got size '{fields['size']:.40}'; give width x height in pixels, such as "
                f"{model.width * model.enlarged}x{model.height * model.enlarged}.",
                "size",
            )
        width, height = int(found["width"]), int(found["height"])
    elif whole["width"] is None and whole["height"] is None:
        return model.width, model.height, model.enlarged
    elif whole["width"] is None or whole["height"] is None:
        raise FieldError("Got one of width and height; give both, or neither.", "width")
    else:
        width, height = whole["width"], whole["height"]
    for scale in range(1, model.enlarged + 1):
        if (width, height) == (scale * model.width, scale * model.height):
            return model.width, model.height, scale
    return width, height, 1


def _frames(fields: Mapping[str, str], model: ModelFacts, most_seconds: float) -> int:
    frames, seconds = _whole(fields, "num_frames", 1, 10**9), _number(fields, "seconds")
    if frames is not None and seconds is not None:
        raise FieldError("Got both seconds and num_frames; give one of the two.", "num_frames")
    fps = _whole(fields, "fps", 1, 1000)
    if fps is not None and fps != model.fps:
        raise FieldError(f"Got fps {fps}; this model makes {model.fps} frames a second.", "fps")
    param = "seconds" if frames is None else "num_frames"
    if frames is None:
        frames = model.frames if seconds is None else round(seconds * model.fps)
    if not 1 <= frames <= most_seconds * model.fps:
        raise FieldError(
            f"Got a video of {seconds_of(frames, model.fps)} seconds; give at least one frame and at most "
            f"{most_seconds:g} seconds.",
            param,
        )
    return frames


def _options(fields: Mapping[str, str]) -> dict[str, Any]:
    steps, guidance = _whole(fields, "num_inference_steps", 1, 1000), _number(fields, "guidance_scale")
    negative = fields.get("negative_prompt") or None
    given: dict[str, Any] = {"steps": steps, "guidance_scale": guidance, "negative_prompt": negative}
    options = {name: value for name, value in given.items() if value is not None}
    SamplingOptions(**options)
    return options


def _whole(fields: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    text = fields.get(name, "")
    if not text:
        return None
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise FieldError(f"Got {name} '{text:.40}'; give a whole number from {least} to {most:,}.", name)
    return int(text)


def _number(fields: Mapping[str, str], name: str) -> float | None:
    text = fields.get(name, "")
    if not text:
        return None
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise FieldError(f"Got {name} '{text:.40}'; give a number such as 4 or 2.5.", name)
    return float(text)
