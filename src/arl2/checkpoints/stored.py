"""A transformer with its tensors exactly as a file stores them, for rewriting a model without rounding it."""

from pathlib import Path
from typing import Any

from arl2.checkpoints.layouts import translate
from arl2.checkpoints.load import build_transformer
from arl2.checkpoints.reading import read_weights
from arl2.model.transformer import CausalWanTransformer3DModel


def load_stored(path: str | Path, *, weights: str = "auto", **settings: Any) -> CausalWanTransformer3DModel:
    """As ``load_transformer``, but every tensor keeps the dtype of its own.

    A trained student is stored with frozen weights in half precision and what trained in float32. Such a model is for
    writing, not for computing. Arguments and errors as for ``load_transformer``.
    """
    file = read_weights(path, branch=weights)
    translated = translate(file.tensors, str(file.path))
    model = build_transformer(file, translated, **settings)  # all checks are here
    model.load_state_dict(translated.tensors, assign=True)
    return model
