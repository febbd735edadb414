"""A task of a few numbers, to watch the loop: a small network learns a random linear map.

python -m tests.training.toy FOLDER CONFIG     two processes train together: to the end (FOLDER/two), and until one of
them dies (FOLDER/dying); prints the exit codes of both
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from arl2.files.records import record_from_mapping
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.processes import joined_processes
from arl2.training.engine.task import Batch, Loss, ParameterGroup
from forked import forked_ranks


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


def together(config: LoopConfig, folder: Path, before_loss: Callable[[Batch], None]) -> None:
    """The part of one of two processes."""
    with joined_processes() as processes:
        train(ToyTask(before_loss=before_loss), config, folder, run_config={"loop": {}}, processes=processes)


def die(batch: Batch) -> None:
    """In the middle of a step; only one of the two has the second slot."""
    if (batch.step, batch.slot) == (16, 1):
        os._exit(7)


if __name__ == "__main__":
    place, settings = Path(sys.argv[1]), record_from_mapping(LoopConfig, json.loads(sys.argv[2]))
    runs = {"two": lambda batch: None, "dying": die}
    codes = {
        name: forked_ranks(2, functools.partial(together, settings, place / name, before))
        for name, before in runs.items()
    }
    sys.stdout.write(json.dumps(codes) + "\n")
