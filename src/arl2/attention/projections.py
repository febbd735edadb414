"""The projections that softmax and hybrid layers share: x -> q, k, v and heads -> x.

Legend: B batch, T tokens, d width = H heads * D head size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.kernels.attention import softmax_attention
from arl2.kernels.attention.mass import attention_with_mass
from arl2.kernels.fused import rms_normed, rms_normed_and_turned
from arl2.kernels.linear import Linear, is_untouched, linear
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


class _Joint(NamedTuple):
    """Weights of q, k and v in one tensor, and its thirds, which the layers' own parameters are."""

    weight: Tensor  # [3 d, d]
    bias: Tensor  # [3 d]
    parts: tuple[tuple[Tensor, Tensor], ...]  # weight [d, d] and bias [d] of each


class Projections(nn.Module):
    """``to_q``, ``to_k``, ``to_v``, the q and k norms, and ``to_out``.

    After :meth:`fuse_projections` q, k and v are one product wherever no gradients are recorded. The parameters remain
    those of the three layers, so names in files, adapters and optimizers are the same; they share one tensor, and what
    changes them in place changes that. Once one of them stands elsewhere (``to(dtype)``, weights that were assigned,
    a hook on a layer) there are three products again, until they are fused again.
    """

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = Linear(width, width)
        self.norm_q = RMSNorm(width, eps)
        self.norm_k = RMSNorm(width, eps)
        self.heads = heads
        self.attention_backend = "auto"
        self._joint: _Joint | None = None

    @torch.no_grad()
    def fuse_projections(self) -> None:
        """Put the weights of q, k and v into one tensor, which takes no more memory than the three."""
        layers = self._three()
        weight, bias = torch.cat([one.weight for one in layers]), torch.cat([one.bias for one in layers])
        self._joint = _Joint(weight, bias, tuple(zip(weight.chunk(3), bias.chunk(3), strict=True)))
        for one, (own_weight, own_bias) in zip(layers, self._joint.parts, strict=True):
            one.weight.data, one.bias.data = own_weight, own_bias

    @torch.no_grad()
    def unfuse_projections(self) -> None:
        """Give each layer a tensor of its own again."""
        if self._joint is not None:
            for one in self._three():
                one.weight.data, one.bias.data = one.weight.clone(), one.bias.clone()
            self._joint = None

    def project(self, x: Float[Tensor, "batch tokens width"]) -> Projected:
        """q, k, v before their norms: what the LoRAs of the state branch are added to."""
        joint = self._usable()
        if joint is None:
            return Projected(self.to_q(x), self.to_k(x), self.to_v(x))
        return Projected(*linear(x, joint.weight, joint.bias).chunk(3, dim=-1))

    def project_keys(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch tokens width"]]:
        """k and v alone, as :meth:`project` gives them."""
        joint = self._usable()
        if joint is None:
            return self.to_k(x), self.to_v(x)
        width = self.to_q.out_features
        k, v = linear(x, joint.weight[width:], joint.bias[width:]).chunk(2, dim=-1)
        return k, v

    def settle(self) -> None:
        """Before a compiled pass, which cannot look: weights that are joint no more are forgotten as such."""
        if self._joint is not None and self._usable() is None:
            self._joint = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Projections":
        """What moves and casts modules takes every parameter for itself; fused ones are fused again afterwards."""
        was_fused, self._joint = self._joint is not None, None
        super()._apply(fn, recurse)
        if was_fused:
            self.fuse_projections()
        return self

    def _usable(self) -> _Joint | None:
        """The joint weights, while they are still what the three layers hold and nothing hooks into these."""
        joint = self._joint
        if joint is None or torch.is_grad_enabled():
            return None
        if torch.compiler.is_compiling():
            return joint  # a graph cannot look; whoever compiles has the weights where they stay
        for one, (weight, bias) in zip(self._three(), joint.parts, strict=True):
            if not (_is_same(one.weight, weight) and _is_same(one.bias, bias)):
                self._joint = None  # its memory is not needed any more
                return None
            # An adapter may stand around a layer and show its weights.
            if type(one) is not Linear or not is_untouched(one):
                return None
        return joint

    def _three(self) -> tuple[Any, Any, Any]:
        # Or what stands around one of them, once a library of adapters has put it there.
        return self.to_q, self.to_k, self.to_v

    def split(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens heads head"]:
        """Cut the width into heads."""
        return x.unflatten(-1, (self.heads, -1))

    def merge(self, heads: Float[Tensor, "batch tokens heads head"]) -> Float[Tensor, "batch tokens width"]:
        """Join the heads and project out."""
        return self.to_out(heads.flatten(-2).to(self.to_out.weight.dtype))

    def attend(
        self,
        q: Float[Tensor, "batch queries heads head"],
        k: Float[Tensor, "batch keys heads head"],
        v: Float[Tensor, "batch keys heads head"],
    ) -> Float[Tensor, "batch queries heads head"]:
        """Softmax attention by the backend that was asked for."""
        return softmax_attention(q=q, k=k, v=v, backend=self.attention_backend)

    def attend_with_mass(
        self,
        q: Float[Tensor, "batch queries heads head"],
        k: Float[Tensor, "batch keys heads head"],
        v: Float[Tensor, "batch keys heads head"],
    ) -> tuple[Float[Tensor, "batch queries heads head"], Float[Tensor, "batch queries heads"]]:
        """The same, and the softmax mass that each query finds."""
        return attention_with_mass(q=q, k=k, v=v, backend=self.attention_backend)

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


def _is_same(own: Tensor, part: Tensor) -> bool:
    """Whether both are the same numbers at the same place. ``Tensor.is_set_to`` cannot be asked of fake tensors."""
    return (
        own.untyped_storage() is part.untyped_storage()
        and own.storage_offset() == part.storage_offset()
        and own.shape == part.shape
        and own.dtype == part.dtype
    )
