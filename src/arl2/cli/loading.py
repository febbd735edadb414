"""From options to a model on its device, and the CPU threads it works with."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from arl2.cli.checks import check_source
from arl2.cli.collector import collect_from_here
from arl2.pipeline.options import ModelSource, SamplingOptions

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline

# Smaller models are done with an operation before a second thread is awake; where cores are busy, threads that wait
# for each other take ten times as long as one.
_SMALL = 50_000_000


def load_pipeline(
    source: ModelSource,
    sampling: SamplingOptions,
    *,
    threads: int | None,
    batch: int = 1,
    say: Callable[[str], None] | None = None,
) -> "ARL2Pipeline":
    """The model on its device, with CPU threads as asked for; errors as for ``open_pipeline``."""
    check_source(source)
    from arl2.pipeline.source import open_pipeline

    use_threads(threads)
    pipe = open_pipeline(source, sampling, batch=batch, say=say)
    use_threads(threads, pipe)
    collect_from_here()
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
