"""One transformer layer: self-attention, cross-attention, feed-forward, the first and last modulated by time.

Legend: B batch, F frames, S tokens a frame, T = F S tokens, d width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.access import Access
from arl2.attention.cross import CrossAttention, CrossAttentionCache
from arl2.attention.factory import build_self_attention
from arl2.attention.layout import ClipLayout
from arl2.attention.lora import linear
from arl2.attention.memory import LayerMemory
from arl2.attention.plan import AttentionSpec
from arl2.kernels.norm import layer_norm
from arl2.kernels.rope import Rotation


class Modulation(NamedTuple):
    """Shift, scale and gate of a sub-layer, one per frame: ``[B, F, 1, d]`` each, float32."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class AttentionCall(NamedTuple):
    """One parallel self-attention: its normed and modulated input, what came out, and where the tokens stand."""

    input: Float[Tensor, "batch tokens width"]
    output: Float[Tensor, "batch tokens width"]
    rotation: Rotation
    layout: ClipLayout


class FeedForward(nn.Module):
    """Linear, GELU (tanh), Linear; with low-rank changes if ``rank`` is not 0."""

    def __init__(self, width: int, hidden: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.up = linear(width, hidden, rank, alpha)
        self.down = linear(hidden, width, rank, alpha)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class CrossNorm(nn.Module):
    """The affine layer norm before cross-attention (the published ``norm3``). Kept in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return layer_norm(x, self.eps, self.weight, self.bias).to(x.dtype)


class TransformerLayer(nn.Module):
    """``x += gate attn(modulated norm x)``; ``x += cross(norm x)``; ``x += gate ffn(modulated norm x)``."""

    def __init__(
        self,
        spec: AttentionSpec,
        *,
        width: int,
        heads: int,
        ffn_dim: int,
        ffn_rank: int,
        ffn_alpha: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.self_attention = build_self_attention(spec, width=width, heads=heads, eps=eps)
        self.cross_norm = CrossNorm(width, eps)
        self.cross_attention = CrossAttention(width, heads, eps)
        self.ffn = FeedForward(width, ffn_dim, ffn_rank, ffn_alpha)
        self.modulation = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.eps = eps
        # Training looks on here (arl2.training.conversion.watching); nobody else does.
        self.attention_watcher: Callable[[AttentionCall], None] | None = None

    def stream(
        self,
        x: Float[Tensor, "batch tokens width"],
        time: Float[Tensor, "batch frames 6 width"],
        text: CrossAttentionCache,
        rotation: Rotation,
        memory: LayerMemory,
        access: Access,
    ) -> Float[Tensor, "batch tokens width"]:
        """One block, reading (and on ``COMMIT`` then writing) this layer's memory."""
        local, mixing = self._modulations(time)
        attended = self.self_attention.stream(self._modulated(x, local), rotation, memory, access)
        return self._rest(_gated(x, attended, local), text, mixing)

    def commit(
        self,
        x: Float[Tensor, "batch tokens width"],
        time: Float[Tensor, "batch frames 6 width"],
        rotation: Rotation,
        memory: LayerMemory,
    ) -> None:
        """Write this layer's memory and compute nothing else (the last layer of a clean pass)."""
        local, _ = self._modulations(time)
        self.self_attention.commit(self._modulated(x, local), rotation, memory)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        time: Float[Tensor, "batch frames 6 width"],
        text: CrossAttentionCache,
        rotation: Rotation,
        layout: ClipLayout,
    ) -> Float[Tensor, "batch tokens width"]:
        """A whole clip in parallel (training); equal to streaming its blocks."""
        local, mixing = self._modulations(time)
        given = self._modulated(x, local)
        attended = self.self_attention.parallel(given, rotation, layout)
        if self.attention_watcher is not None:
            self.attention_watcher(AttentionCall(given, attended, rotation, layout))
        return self._rest(_gated(x, attended, local), text, mixing)

    def _rest(self, x: Tensor, text: CrossAttentionCache, mixing: Modulation) -> Tensor:
        x = x + self.cross_attention(self.cross_norm(x), text)
        return _gated(x, self.ffn(self._modulated(x, mixing)), mixing)

    def _modulations(self, time: Tensor) -> tuple[Modulation, Modulation]:
        """For self-attention and for the feed-forward."""
        six = (self.modulation.float() + time)[:, :, None].unbind(-2)
        return Modulation(*six[:3]), Modulation(*six[3:])

    def _modulated(self, x: Tensor, by: Modulation) -> Tensor:
        normed = layer_norm(x, self.eps).unflatten(1, (by.shift.shape[1], -1))
        return torch.addcmul(by.shift, normed, 1 + by.scale).flatten(1, 2).to(x.dtype)


def _gated(x: Tensor, change: Tensor, by: Modulation) -> Tensor:
    """``x + gate * change``, the gate per frame, in float32."""
    frames = by.gate.shape[1]
    total = torch.addcmul(x.unflatten(1, (frames, -1)).float(), change.unflatten(1, (frames, -1)).float(), by.gate)
    return total.flatten(1, 2).to(x.dtype)
