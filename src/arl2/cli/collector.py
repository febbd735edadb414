"""Python's garbage collector while a command starts: it would look for garbage again and again where there is none."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_off: list[bool] = []


@contextmanager
def without_collector() -> Iterator[None]:
    """Until the end, or until ``collect_from_here``, nothing is collected that refers to itself."""
    enabled = gc.isenabled()
    gc.disable()
    _off.append(enabled)
    try:
        yield
    finally:
        _off.clear()
        if enabled:
            gc.enable()


def collect_from_here() -> None:
    """The start is over. What it imported and loaded stays, so no collection looks at it again.

    Does nothing outside ``without_collector``.
    """
    if not _off:
        return
    gc.freeze()
    if _off.pop():
        gc.enable()


def leave_to_the_system() -> None:
    """The process ends, and the system takes its memory; going over every object first would take half a second.

    Not where Triton was imported: what it is bound with prints a line for each object that is left.
    """
    if "triton" not in sys.modules:
        gc.disable()
        gc.freeze()
