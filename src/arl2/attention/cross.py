"""Cross-attention to the prompt: keys and values depend on the text alone, so they are made once per prompt."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.projections import Projections


class CrossAttentionCache(NamedTuple):
    """One layer's keys and values of a prompt, ``[B, words, H, D]`` each."""

    k: Tensor
    v: Tensor

    def repeated(self, count: int) -> "CrossAttentionCache":
        """The whole batch ``count`` times, one after the other."""
        return CrossAttentionCache(*(one.repeat(count, 1, 1, 1) for one in self))


class CrossAttention(nn.Module):
    """Tokens attend to all rows of the text, padding included: the published weights were trained so. No rotation."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.shared = Projections(width, heads, eps)

    def remember(self, text: Float[Tensor, "batch words width"]) -> CrossAttentionCache:
        """Keys and values of a prompt."""
        shared = self.shared
        return CrossAttentionCache(shared.split(shared.norm_k(shared.to_k(text))), shared.split(shared.to_v(text)))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], text: CrossAttentionCache
    ) -> Float[Tensor, "batch tokens width"]:
        q = self.shared.split(self.shared.norm_q(self.shared.to_q(x)))
        return self.shared.merge(self.shared.attend(q, text.k, text.v))
