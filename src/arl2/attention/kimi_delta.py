"""Kind K: a windowed hybrid layer whose state decays channel by channel (Kimi Delta Attention, arXiv 2510.26692)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arl2.attention.channel_gate import ChannelGate, channel_gate_flops, channel_update_flops, channels_of
from arl2.attention.cost import HeadSize
from arl2.attention.kind import Part
from arl2.attention.layer_memory import MemoryGeometry
from arl2.attention.state_branch import Gate, MemoryBranch, start_slow
from arl2.attention.windowed import FEATURE_PARTS, WindowedSpec
from arl2.kernels.delta_forms import channel_delta_state

DECAY_PARTS = (
    Part("decay", 1, ("state.decay.down.weight", "state.decay.up.weight")),
    Part("A_log", 1, ("state.A_log",), decays=False),
    Part("dt_bias", 1, ("state.dt_bias",), decays=False),
)
"""Of a decay per channel."""


@dataclass(frozen=True)
class KimiDeltaSpec(WindowedSpec):
    """One decay per channel of the key, one strength per head."""

    letter: ClassVar[str] = "K"
    name: ClassVar[str] = "windowed Kimi delta"
    parts: ClassVar = (*DECAY_PARTS, Part("b_proj", 1, ("state.beta_proj.weight",)), *FEATURE_PARTS)
    # Decays between all pairs of tokens of a chunk, channel by channel, are the most of it.
    saves: ClassVar = {4: ((185.0, 8.0, 0.0), (108.0, 0.0, 0.0)), 2: ((167.0, 4.0, 0.0), (107.0, 0.0, 0.0))}
    saves_again: ClassVar = {4: (105.8, 0.0, -2.2), 2: (103.8, 0.0, -2.2)}

    def branch(self, size: HeadSize) -> "KimiDeltaBranch":
        return KimiDeltaBranch(size, self.rank, self.alpha, tied=self.ties_pairs)

    def gate_flops(self, size: HeadSize, tokens: int) -> int:
        return channel_gate_flops(size, tokens, tied=self.ties_pairs) + 2 * tokens * size.width * size.heads

    def update_flops(self, size: HeadSize, block: MemoryGeometry) -> int:
        return channel_update_flops(size, block.block_tokens)


class KimiDeltaBranch(MemoryBranch):
    """``S <- diag(exp g) S``, then the delta rule with one strength per token and head."""

    def __init__(self, size: HeadSize, rank: int, alpha: float, *, tied: bool) -> None:
        super().__init__()
        self.decay = ChannelGate(size, tied=tied)
        self.beta_proj = Gate(size.width, size.heads)
        self.A_log = nn.Parameter(torch.empty(size.heads))
        self.dt_bias = nn.Parameter(torch.empty(size.heads, channels_of(size, tied=tied)))
        self._add_features(size.width, size.heads, rank, alpha)
        self.reset_parameters()

    def reset_gates(self, generator: torch.Generator | None) -> None:
        self.decay.reset_parameters(generator)
        nn.init.xavier_uniform_(self.beta_proj.weight, gain=2**-2.5, generator=generator)
        start_slow(self.A_log, self.dt_bias, generator)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log decay ``[B, T, H, D]`` and strength ``[B, T, H]``, float32."""
        return channel_decay(self.decay, x, self.A_log, self.dt_bias), 2 * torch.sigmoid(self.beta_proj(x).float())

    def advance(self, written: tuple[Tensor, ...], state: Tensor, *, frame_tokens: int) -> Tensor:
        k, v, g, beta = written
        both = beta[..., None].expand_as(k)
        return channel_delta_state(k=k, v=v, g=g, erase=both, write=both, initial_state=state)


def channel_decay(gate: ChannelGate, x: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """``-exp(a_log) softplus(gate(x) + dt_bias)``, ``[B, T, H, D]``, float32."""
    rate = a_log.float().exp()[:, None]
    return gate.spread(-rate * F.softplus(gate(x).float() + dt_bias.float()))
