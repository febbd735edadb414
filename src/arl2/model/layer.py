"""One transformer layer: self-attention, cross-attention, feed-forward, the first and last modulated by time; the head.

Legend: B batch, F frames, S tokens a frame, T = F S tokens, d width.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.cost import HeadSize
from arl2.attention.cross import CrossAttention, CrossAttentionCache
from arl2.attention.kind import Access, AttentionSpec
from arl2.attention.layer_memory import LayerMemory
from arl2.attention.layout import ClipLayout
from arl2.attention.lora import as_function, linear
from arl2.kernels.fused import gated_sum, gelu_of_linear, layer_normed, modulated
from arl2.kernels.linear import Linear, product_dtype
from arl2.kernels.rope import Rotation

_PIECE_BYTES = 16_000_000  # of the feed-forward's hidden values: half of what glibc's allocator keeps for the next one


class Modulation(NamedTuple):
    """Shift, scale and gate of a sub-layer, one per frame: ``[B, F, 1, d]`` each, float32."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class FeedForward(nn.Module):
    """Linear, GELU (tanh), Linear; with a LoRA on each if ``rank`` is not 0."""

    def __init__(self, width: int, hidden: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.up = linear(width, hidden, rank, alpha)
        self.down = linear(hidden, width, rank, alpha)
        self.hidden = hidden

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            work = product_dtype(x)
            up, down = as_function(self.up, x, work), as_function(self.down, x, work)
            if up is not None and down is not None:
                return self._in_pieces(x, up, down, work)
        if isinstance(self.up, nn.Linear):
            return self.down(gelu_of_linear(x, self.up))
        return self.down(F.gelu(self.up(x), approximate="tanh"))

    def _in_pieces(
        self, x: Tensor, up: Callable[[Tensor], Tensor], down: Callable[[Tensor], Tensor], work: torch.dtype
    ) -> Tensor:
        """Some tokens at a time, so that what is between the two products stays in the processor's cache.

        New memory is dear on a CPU: its first touch takes as long as the GELU. Pieces are small enough for the
        allocator to use the same memory again.
        """
        rows = x.flatten(0, -2)
        size = max(1, _PIECE_BYTES // (self.hidden * work.itemsize))
        pieces = [down(F.gelu(up(piece.to(work)), approximate="tanh")).to(x.dtype) for piece in rows.split(size)]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view_as(x)


class CrossNorm(nn.Module):
    """The affine layer norm before cross-attention (the published ``norm3``). Kept in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return layer_normed(x, self.weight, self.bias, self.eps)


class TransformerLayer(nn.Module):
    """``x += gate attn(modulated norm x)``; ``x += cross(norm x)``; ``x += gate ffn(modulated norm x)``."""

    def __init__(
        self,
        spec: AttentionSpec,
        *,
        size: HeadSize,
        ffn_dim: int,
        ffn_rank: int,
        ffn_alpha: float,
        eps: float,
    ) -> None:
        super().__init__()
        width = size.width
        self.self_attention = spec.build(size, eps)
        self.cross_norm = CrossNorm(width, eps)
        self.cross_attention = CrossAttention(width, size.heads, eps)
        self.ffn = FeedForward(width, ffn_dim, ffn_rank, ffn_alpha)
        self.modulation = nn.Parameter(_start_modulation(6, width))
        self.eps = eps

    def stream(
        self,
        x: Float[Tensor, "batch tokens width"],
        modulations: Float[Tensor, "batch frames 6 width"],
        text: CrossAttentionCache,
        rotation: Rotation,
        memory: LayerMemory,
        access: Access,
    ) -> Float[Tensor, "batch tokens width"]:
        """One block, reading (and on ``COMMIT`` then writing) this layer's memory.

        Args:
            modulations: of this layer; :func:`modulations_of` makes those of all layers at once.
        """
        local, mixing = _split(modulations)
        attended = self.self_attention.stream(self._modulated(x, local), rotation, memory, access)
        return self._rest(gated_sum(x, attended, local.gate), text, mixing)

    def commit(
        self,
        x: Float[Tensor, "batch tokens width"],
        modulations: Float[Tensor, "batch frames 6 width"],
        rotation: Rotation,
        memory: LayerMemory,
    ) -> None:
        """Write this layer's memory and compute nothing else (the last layer of a cache-update pass)."""
        local, _ = _split(modulations)
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
        local, mixing = _split(self.modulation.float() + time)
        attended = self.self_attention(self._modulated(x, local), rotation, layout)
        return self._rest(gated_sum(x, attended, local.gate), text, mixing)

    def _rest(self, x: Tensor, text: CrossAttentionCache, mixing: Modulation) -> Tensor:
        x = x + self.cross_attention(self.cross_norm(x), text)
        return gated_sum(x, self.ffn(self._modulated(x, mixing)), mixing.gate)

    def _modulated(self, x: Tensor, by: Modulation) -> Tensor:
        return modulated(x, by.shift, by.scale, self.eps)


def modulations_of(
    layers: Iterable[TransformerLayer], time: Float[Tensor, "batch frames 6 width"]
) -> Float[Tensor, "layers batch frames 6 width"]:
    """What the timesteps of a block become for each layer, in two kernels for all of them."""
    return torch.stack([layer.modulation.float() for layer in layers])[:, None, None] + time


def _split(modulations: Tensor) -> tuple[Modulation, Modulation]:
    """For self-attention and for the feed-forward."""
    six = modulations[:, :, None].unbind(-2)
    return Modulation(*six[:3]), Modulation(*six[3:])


class FlowHead(nn.Module):
    """Modulated norm and a linear layer from the width to the values of a patch."""

    def __init__(self, width: int, patch_values: int, eps: float) -> None:
        super().__init__()
        self.modulation = nn.Parameter(_start_modulation(2, width))
        self.proj = Linear(width, patch_values)
        self.eps = eps

    def forward(
        self, x: Float[Tensor, "batch tokens width"], time: Float[Tensor, "batch frames width"]
    ) -> Float[Tensor, "batch tokens values"]:
        shift, scale = (self.modulation.float() + time[:, :, None])[:, :, None].unbind(-2)
        return self.proj(modulated(x, shift, scale, self.eps).to(self.proj.weight.dtype))


def _start_modulation(rows: int, width: int) -> Tensor:
    values = torch.empty(rows, width)
    # Without memory there is nothing to sample, and arithmetic there would load torch's compiler.
    return values if values.is_meta else torch.randn(rows, width) / width**0.5
