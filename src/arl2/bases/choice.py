"""Which base classes this process uses. Decided once, when the first of them is needed."""

import functools
import sys

_preferred: list[bool] = []


def prefer_own() -> None:
    """Take our own base classes rather than those of diffusers, unless diffusers is already imported.

    For a process that is a command and saves no model: nobody there asks whether a model is diffusers' ``ModelMixin``.
    It has no effect once the choice is made.
    """
    _preferred.append(True)


@functools.cache
def takes_own() -> bool:
    """Whether models and pipelines of this process have our own base classes."""
    return bool(_preferred) and "diffusers" not in sys.modules
