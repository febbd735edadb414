"""The projections that softmax and hybrid layers share: x -> q, k, v and heads -> x.

Legend: B batch, T tokens, d width = H heads * D head size.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.kernels.fused import rms_normed, rms_normed_and_turned
from arl2.kernels.rope import Rotation


class RMSNorm(nn.Module):
    """RMS norm over the whole width (not per head), in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return rms_normed(x, self.weight, self.eps)

    def turned(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, heads: int
    ) -> Float[Tensor, "batch tokens heads head"]:
        """Normed over the whole width, then each head turned."""
        return rms_normed_and_turned(x, self.weight, self.eps, rotation, heads)


class Projected(NamedTuple):
    """Projections of a block before the norms, still ``d`` wide: ``[B, T, d]`` each."""

    q: Tensor
    k: Tensor
    v: Tensor


class Projections(nn.Module):
    """``to_q``, ``to_k``, ``to_v``, the q and k norms, and ``to_out``."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        self.norm_q = RMSNorm(width, eps)
        self.norm_k = RMSNorm(width, eps)
        self.heads = heads

    def project(self, x: Float[Tensor, "batch tokens width"]) -> Projected:
        """q, k, v before their norms: what the LoRAs of the state branch are added to."""
        return Projected(self.to_q(x), self.to_k(x), self.to_v(x))

    def split(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens heads head"]:
        """Cut the width into heads."""
        return x.unflatten(-1, (self.heads, -1))

    def merge(self, heads: Float[Tensor, "batch tokens heads head"]) -> Float[Tensor, "batch tokens width"]:
        """Join the heads and project out."""
        return self.to_out(heads.flatten(-2).to(self.to_out.weight.dtype))

    def attention_inputs(self, raw: Projected) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v normed and cut into heads, not rotated: ``[B, T, H, D]``."""
        return self.split(self.norm_q(raw.q)), self.split(self.norm_k(raw.k)), self.split(raw.v)

    def rotated_inputs(self, raw: Projected, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as softmax attention takes them: q and k normed and turned, all cut into heads, ``[B, T, H, D]``."""
        return self.norm_q.turned(raw.q, rotation, self.heads), self.key(raw.k, rotation), self.split(raw.v)

    def key(
        self, raw: Float[Tensor, "batch tokens width"], rotation: Rotation
    ) -> Float[Tensor, "batch tokens heads head"]:
        """Keys as softmax attention takes them."""
        return self.norm_k.turned(raw, rotation, self.heads)
