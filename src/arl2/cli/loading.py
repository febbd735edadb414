"""From options to a model on its device, and the CPU threads it works with."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from arl2.cli.checks import check_source
from arl2.cli.collector import collect_from_here
from arl2.cli.threads import use_threads
from arl2.pipeline.options import ModelSource, SamplingOptions

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline


def load_pipeline(
    source: ModelSource,
    sampling: SamplingOptions,
    *,
    threads: int | None,
    batch: int = 1,
    ranks: int = 1,
    say: Callable[[str], None] | None = None,
) -> "ARL2Pipeline":
    """The model on its device, with CPU threads as asked for; errors as for ``open_pipeline``."""
    check_source(source)
    from arl2.pipeline.source import open_pipeline

    use_threads(threads)
    pipe = open_pipeline(source, sampling, batch=batch, ranks=ranks, say=say)
    use_threads(threads, pipe)
    collect_from_here()
    return pipe
