"""Gates of one number per token and channel, and the kind of layers that use them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.cost import HeadSize
from arl2.kernels.delta_forms.chunked import CHANNEL_CHUNK
from arl2.kernels.linear import Linear


class ChannelGate(nn.Module):
    """``W_up W_down x``, one number per token, head and channel, through a bottleneck as wide as a head.

    Args:
        tied: adjacent channels, which a rotation turns into each other, share one number.
    """

    def __init__(self, size: HeadSize, *, tied: bool) -> None:
        super().__init__()
        self.down = Linear(size.width, size.head_dim, bias=False)
        self.up = Linear(size.head_dim, size.heads * channels_of(size, tied=tied), bias=False)
        self.heads, self.tied = size.heads, tied

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Small, as the gates of a hybrid layer."""
        for one in (self.down, self.up):
            nn.init.xavier_uniform_(one.weight, gain=2**-1.25, generator=generator)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens heads channels"]:
        """In the dtype of the weights; tied channels once."""
        return self.up(self.down(x.to(self.down.weight.dtype))).unflatten(-1, (self.heads, -1))

    def spread(self, gates: Float[Tensor, "batch tokens heads channels"]) -> Float[Tensor, "batch tokens heads head"]:
        """One number for every channel, whether tied or not."""
        return gates.repeat_interleave(2, dim=-1) if self.tied else gates


def channels_of(size: HeadSize, *, tied: bool) -> int:
    """Numbers per head that a gate computes."""
    return size.head_dim // 2 if tied else size.head_dim


def channel_gate_flops(size: HeadSize, tokens: int, *, tied: bool) -> int:
    """Of one gate."""
    return 2 * tokens * size.head_dim * (size.width + size.heads * channels_of(size, tied=tied))


def channel_update_flops(size: HeadSize, tokens: int) -> int:
    """Of writing tokens by the delta rule with gates per channel."""
    return tokens * size.heads * (4 * size.head_dim**2 + 3 * CHANNEL_CHUNK * size.head_dim)
