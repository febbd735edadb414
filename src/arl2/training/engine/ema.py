"""The running average of the weights that train: what is evaluated and exported."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average in float32, by parameter name.

    After update ``n`` (from 1) the decay is ``min(decay, (1 + n) / (10 + n))``, so that early on the average forgets
    the random start quickly.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = dict(parameters)
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in parameters.items()
        }

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Move towards the current weights; ``count`` is the number of this update, from 1."""
        decay = min(self.decay, (1 + count) / (10 + count))
        for name, parameter in self.parameters.items():
            self.tensors[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the parameters hold the average; afterwards their own values again, to the bit."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._fill(self.tensors)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
