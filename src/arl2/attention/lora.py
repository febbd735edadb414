"""LoRA (arXiv 2106.09685) as the published ARL2 checkpoints store it."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.folded import Affine, Folded, Watched, may_fold
from arl2.errors import CheckpointError
from arl2.kernels.linear import Linear, is_untouched, product_dtype


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

    def added_to(
        self, y: Float[Tensor, "*rows outputs"], x: Float[Tensor, "*rows inputs"], *, in_place: bool = False
    ) -> Float[Tensor, "*rows outputs"]:
        """``y`` plus what the adapter makes of ``x``; without gradients the sum is part of the product.

        Args:
            y: what is added to.
            x: tokens.
            in_place: ``y``, contiguous, is not needed any more.
        """
        if torch.is_grad_enabled():
            return y + self(x)
        work = product_dtype(x)
        inner = x.flatten(0, -2).to(work) @ self.A.to(work)
        rows, out = y.flatten(0, -2), self.B.to(work)
        if in_place and y.dtype == work:
            rows.addmm_(inner, out, alpha=self.scale)
            return y
        return torch.addmm(rows.to(work), inner, out, alpha=self.scale).to(y.dtype).unflatten(0, y.shape[:-1])

    def extra_repr(self) -> str:
        return f"{self.A.shape[0]} -> {self.A.shape[1]} -> {self.B.shape[1]}, scale {self.scale:g}"


class LoRALinear(nn.Module):
    """A frozen linear layer with a LoRA beside it."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = Linear(in_features, out_features)
        self.change = LoRA(in_features, out_features, rank, alpha)
        self.folded = Folded()

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        return self.change.added_to(self.linear(x), x, in_place=True)

    def fold(self, watched: Watched) -> Affine:
        """Both as one product."""
        own, change = watched.layer(self, "linear", Linear), watched.layer(self, "change", LoRA)
        return Affine(changed_weight(own.weight, change).float(), own.bias)


def changed_weight(weight: Tensor, change: LoRA | None) -> Tensor:
    """The weight ``[out, in]`` plus what a LoRA adds to it, in float64."""
    if change is None:
        return weight.double()
    return weight.double() + change.scale * (change.A.double() @ change.B.double()).T


def linear(in_features: int, out_features: int, rank: int, alpha: float) -> nn.Module:
    """A plain linear layer, or one with a LoRA if ``rank`` is not 0."""
    if rank == 0:
        return Linear(in_features, out_features)
    return LoRALinear(in_features, out_features, rank, alpha)


def as_function(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """A layer that :func:`linear` made as a function of ``[rows, inputs]`` like ``x`` in ``dtype``, its weights cast
    once; a LoRA is folded in where that is faster. No gradients.

    None if it is another layer by now, or something hooks into it: then it has to be called itself.
    """
    if type(layer) is LoRALinear and may_fold(x) and is_untouched(layer):
        folded = layer.folded.of(layer.fold)
        if folded is not None:
            return lambda x: F.linear(x, *folded)
    if not all(is_untouched(part) for part in layer.modules()):
        return None
    own = layer.linear if type(layer) is LoRALinear else layer
    if type(own) is not Linear:
        return None
    weight, bias = own.weight.to(dtype), None if own.bias is None else own.bias.to(dtype)
    if type(layer) is not LoRALinear:
        return lambda x: F.linear(x, weight, bias)
    inner, outer, scale = layer.change.A.to(dtype), layer.change.B.to(dtype), layer.change.scale
    return lambda x: F.linear(x, weight, bias).addmm_(x @ inner, outer, alpha=scale)


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
