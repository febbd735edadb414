"""From options to a model on its device, and the CPU threads it works with."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from arl2.cli.checks import check_source
from arl2.cli.options import options_of
from arl2.errors import ConfigError
from arl2.pipeline.options import ModelSource, SamplingOptions

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline

# Smaller models are done with an operation before a second thread is awake; where cores are busy, threads that wait
# for each other take ten times as long as one.
_SMALL = 50_000_000
# Sampling options that reach the work by its settings, its frames and its seeds.
ELSEWHERE = ("num_frames", "height", "width", "seed", "negative_prompt", "guidance_scale")


def load_pipeline(
    source: ModelSource,
    sampling: SamplingOptions,
    *,
    threads: int | None,
    batch: int = 1,
    say: Callable[[str], None] | None = None,
) -> "ARL2Pipeline":
    """The model on its device, with guidance and CPU threads as asked for; errors as for ``open_pipeline``."""
    check_source(source)
    from arl2.pipeline.source import open_pipeline

    use_threads(threads)
    pipe = open_pipeline(source, sampling, batch=batch, say=say)
    use_threads(threads, pipe)
    settings = pipe.settings
    scale, negative = sampling.guidance_scale, sampling.negative_prompt
    pipe.settings = replace(
        settings,
        guidance_scale=settings.guidance_scale if scale is None else scale,
        negative_prompt=settings.negative_prompt if negative is None else negative,
    )
    return pipe


def use_threads(threads: int | None, pipe: "ARL2Pipeline | None" = None) -> None:
    """As many CPU threads as asked for; by default one where the model is small, else torch's own number."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    elif pipe is not None and "OMP_NUM_THREADS" not in os.environ and _size(pipe) < _SMALL:
        torch.set_num_threads(1)


def _size(pipe: "ARL2Pipeline") -> int:
    return sum(parameter.numel() for parameter in pipe.transformer.parameters())


def carried(options: SamplingOptions, command: str, *names: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """Those options that the work of a command takes, by their names; none is dropped without a word.

    Args:
        options: As given.
        command: For the message.
        names: What is returned.
        also: What reaches the work in another way.

    Raises:
        ConfigError: Another option was given.
    """
    for option in options_of(SamplingOptions):
        if option.name not in (*names, *also) and getattr(options, option.name) != option.default:
            raise ConfigError(f"{option.names[0]} does not go with '{command}'; leave it out.")
    return {name: getattr(options, name) for name in names}
