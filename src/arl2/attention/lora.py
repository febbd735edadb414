"""LoRA (arXiv 2106.09685) as the published ARL2 checkpoints store it."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.errors import CheckpointError


class LoRA(nn.Module):
    """``(alpha / rank) (x A) B``: zero at the start, since ``B`` is."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(in_features, rank))
        self.B = nn.Parameter(torch.empty(rank, out_features))
        self.scale = alpha / rank
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """A Kaiming-uniform (a = sqrt 5) over its inputs, B zero."""
        bound = 1 / math.sqrt(self.A.shape[0])  # what Kaiming-uniform with a = sqrt(5) comes to
        with torch.no_grad():
            self.A.uniform_(-bound, bound, generator=generator)
            self.B.zero_()

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        # In training the weights may be float32 where all else is half precision.
        return self.scale * ((x @ self.A.to(x.dtype)) @ self.B.to(x.dtype))

    def extra_repr(self) -> str:
        return f"{self.A.shape[0]} -> {self.A.shape[1]} -> {self.B.shape[1]}, scale {self.scale:g}"


class LoRALinear(nn.Module):
    """A frozen linear layer with a LoRA beside it."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.change = LoRA(in_features, out_features, rank, alpha)

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        return self.linear(x) + self.change(x)


def linear(in_features: int, out_features: int, rank: int, alpha: float) -> nn.Module:
    """A plain linear layer, or one with a LoRA if ``rank`` is not 0."""
    if rank == 0:
        return nn.Linear(in_features, out_features)
    return LoRALinear(in_features, out_features, rank, alpha)


def common_rank(ranks: Mapping[int, int], expected: set[int], where: str) -> int:
    """The one rank of LoRAs, given each layer's; 0 if no layer has one.

    Raises:
        CheckpointError: ranks that differ, or other layers than ``expected``.
    """
    if not ranks:
        return 0
    if set(ranks) != expected or len(set(ranks.values())) != 1:
        raise CheckpointError(
            f"{where}: LoRAs stand on layers {sorted(ranks)} with ranks {sorted(set(ranks.values()))}; one rank on "
            f"layers {sorted(expected)} is needed."
        )
    return next(iter(ranks.values()))
