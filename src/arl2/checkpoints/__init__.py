"""Weights on disk: reading them safely, the published layouts, building a model from them, writing them back.

Importing this room loads no torch; a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arl2.checkpoints.export import export_checkpoint as export_checkpoint
    from arl2.checkpoints.load import load_transformer as load_transformer

_PUBLIC = {"export_checkpoint": "arl2.checkpoints.export", "load_transformer": "arl2.checkpoints.load"}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'arl2.checkpoints' has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
