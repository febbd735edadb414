"""Keywords of a call and of a stream, sorted into how to sample and what from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from arl2.errors import ConfigError, suggestion
from arl2.streams.options import SamplingKeywords, SamplingOptions
from arl2.streams.request import InputKeywords, Inputs


class StreamKeywords(SamplingKeywords, InputKeywords, total=False):
    """Keywords of a call and of a stream."""

    num_inference_steps: int | Sequence[int] | None


def options_and_inputs(
    prompt: str | Sequence[str] | None, options: SamplingOptions | None, keywords: Mapping[str, Any]
) -> tuple[SamplingOptions, Inputs]:
    """The keywords of a call, sorted into options (over those given) and inputs."""
    if options is not None and not isinstance(options, SamplingOptions):
        raise ConfigError(f"Got options {options!r:.80}; give SamplingOptions(...), or keywords.")
    of_options, of_inputs = SamplingKeywords.__annotations__, InputKeywords.__annotations__
    for name in keywords:
        if name not in of_options and name not in of_inputs and name != "num_inference_steps":
            raise TypeError(f"Unknown argument '{name}'. {suggestion(name, [*of_options, *of_inputs])}")
    given = {name: value for name, value in keywords.items() if name in of_options}
    if keywords.get("num_inference_steps") is not None:
        if given.get("steps") is not None:
            raise ConfigError("Got both num_inference_steps and steps; give one of them.")
        given["steps"] = _inference_steps(keywords["num_inference_steps"])
    inputs = Inputs(prompt=prompt, **{name: value for name, value in keywords.items() if name in of_inputs})
    return replace(options or SamplingOptions(), **given), inputs


def _inference_steps(value: Any) -> Any:
    try:
        return SamplingOptions(steps=value).steps
    except ConfigError as error:
        raise ConfigError(str(error).replace("steps", "num_inference_steps", 1)) from error
