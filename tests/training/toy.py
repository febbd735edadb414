"""A task of a few numbers, to watch the loop: a small network learns a random linear map."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from arl2.training.engine.task import Batch, Loss, ParameterGroup


class ToyTask:
    """``before_loss`` is called with every batch: a test stops, breaks or counts there."""

    def __init__(self, *, before_loss: Callable[[Batch], None] = lambda batch: None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.target = torch.randn(2, 4, generator=generator)
        self.before_loss = before_loss
        self.losses: dict[tuple[int, int], float] = {}

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        named = dict(self.network.named_parameters())
        weights = {name: p for name, p in named.items() if p.ndim == 2}
        biases = {name: p for name, p in named.items() if p.ndim == 1}
        return [ParameterGroup(weights, weight_decay=0.1, hidden=True), ParameterGroup(biases, learning_rate_scale=2.0)]

    def loss(self, batch: Batch) -> Loss:
        self.before_loss(batch)
        x = torch.randn(16, 4, generator=batch.generator)
        value = (self.network(x) - x @ self.target.T).square().mean()
        self.losses[batch.step, batch.slot] = value.item()
        return Loss(value, 16, {"error": value.detach().sqrt()})

    def evaluate(self) -> Mapping[str, float]:
        return {"weight_sum": sum(p.sum().item() for p in self.network.parameters())}

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "weights.txt").write_text(str(self.evaluate()["weight_sum"]))
