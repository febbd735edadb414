"""A training task of a few numbers: a linear map is learnt. What is wanted of it is its loop, its files and its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from arl2.files.atomic import atomic_folder
from arl2.training.engine.task import Batch, Loss, ParameterGroup


class LinearTask:
    """A small network."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.network = nn.Linear(16, 16)
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, std=0.3, generator=draw)
        self.target = torch.randn(16, 16, generator=draw)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """All of it."""
        return [ParameterGroup(dict(self.network.named_parameters()))]

    def loss(self, batch: Batch) -> Loss:
        """Squared error of a batch."""
        x = torch.randn(16, 16, generator=batch.generator)
        value = (self.network(x) - x @ self.target.T).square().mean()
        return Loss(value, 16, {})

    def evaluate(self) -> Mapping[str, float]:
        """The sum of its weights."""
        return {"weight_sum": sum(p.sum().item() for p in self.network.parameters())}

    def export(self, folder: Path) -> None:
        """The same, as text."""
        with atomic_folder(folder, replace=True, keep=True) as part:
            (part / "weights.txt").write_text(repr(self.evaluate()["weight_sum"]))
