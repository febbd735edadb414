"""A transformer's weights, opened once: the configuration, a model to compute with, or one exactly as stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from arl2.checkpoints.layouts import Translated, translate
from arl2.checkpoints.load import build_transformer, config_of
from arl2.checkpoints.reading import WeightsFile, read_weights
from arl2.files.float8 import all_widened
from arl2.model.transformer import CausalWanTransformer3DModel


@dataclass(frozen=True)
class StoredWeights:
    """A file or folder of weights. It is opened when first needed, and only once; errors as for ``load_transformer``.

    Attributes:
        path: of the file or folder.
        branch: of a file with EMA and plain weights, which: ``"auto"``, ``"ema"`` or ``"plain"``.
        settings: what no file holds, as for ``load_transformer``.
    """

    path: Path
    branch: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def file(self) -> WeightsFile:
        """The tensors as they are named in the file, mapped and not read."""
        return read_weights(self.path, branch=self.branch)

    @cached_property
    def translated(self) -> Translated:
        """The tensors under the model's own names."""
        return translate(self.file.tensors, str(self.file.path), self.file.scales)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Of the transformer, from names and shapes alone."""
        return config_of(self.file, self.translated, dict(self.settings))

    def transformer(self, dtype: torch.dtype | None = None) -> CausalWanTransformer3DModel:
        """The model, computing in ``dtype``; in that of the file if None."""
        return build_transformer(self.file, self.translated, dtype=dtype, **self.settings)

    def exact_transformer(self) -> CausalWanTransformer3DModel:
        """The model with every tensor in its own dtype: for rewriting without rounding, not for computing.

        A trained student is stored with frozen weights in half precision and what trained in float32. Weights stored in
        8 bits become bfloat16, which holds them exactly, or float32 if they are scaled.
        """
        model = self.transformer()  # all checks are here
        model.load_state_dict(all_widened(self.translated.tensors, self.translated.scales), assign=True)
        return model


def load_stored(path: str | Path, *, weights: str = "auto", **settings: Any) -> CausalWanTransformer3DModel:
    """As ``load_transformer``, but every tensor keeps the dtype of its own."""
    return StoredWeights(Path(path), weights, settings).exact_transformer()
