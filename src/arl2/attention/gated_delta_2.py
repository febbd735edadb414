"""Kind G: a windowed hybrid layer whose state is erased and written by gates of their own.

Gated DeltaNet-2 (arXiv 2605.22791): a decay and an erase gate per channel of the key, a write gate per channel of the
value. With both gates equal it is Kimi Delta Attention.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from arl2.attention.channel_gate import ChannelGate, channel_gate_flops, channel_update_flops, channels_of
from arl2.attention.cost import HeadSize
from arl2.attention.kimi_delta import DECAY_PARTS, channel_decay
from arl2.attention.kind import Part
from arl2.attention.layer_memory import MemoryGeometry
from arl2.attention.state_branch import MemoryBranch, start_slow
from arl2.attention.windowed import FEATURE_PARTS, WindowedSpec
from arl2.kernels.delta_forms import channel_delta_state


@dataclass(frozen=True)
class GatedDelta2Spec(WindowedSpec):
    """Decay, erasing and writing per channel."""

    letter: ClassVar[str] = "G"
    name: ClassVar[str] = "windowed gated delta 2"
    parts: ClassVar = (
        *DECAY_PARTS,
        Part("erase", 1, ("state.erase.down.weight", "state.erase.up.weight")),
        Part("write", 1, ("state.write.down.weight", "state.write.up.weight")),
        *FEATURE_PARTS,
    )
    saves: ClassVar = {4: ((191.0, 8.0, 0.0), (114.0, 0.0, 0.0)), 2: ((174.0, 4.0, 0.0), (115.0, 0.0, 0.0))}
    saves_again: ClassVar = {4: (105.8, 0.0, -2.2), 2: (103.8, 0.0, -2.2)}

    def branch(self, size: HeadSize) -> "GatedDelta2Branch":
        return GatedDelta2Branch(size, self.rank, self.alpha, tied=self.ties_pairs)

    def gate_flops(self, size: HeadSize, tokens: int) -> int:
        of_keys = 2 * channel_gate_flops(size, tokens, tied=self.ties_pairs)
        return of_keys + channel_gate_flops(size, tokens, tied=False)

    def update_flops(self, size: HeadSize, block: MemoryGeometry) -> int:
        return channel_update_flops(size, block.block_tokens)


class GatedDelta2Branch(MemoryBranch):
    """``S <- (I - k (b * k)^T) diag(exp g) S + k (w * v)^T``, with ``b`` and ``w`` from 0 to 1."""

    def __init__(self, size: HeadSize, rank: int, alpha: float, *, tied: bool) -> None:
        super().__init__()
        self.decay, self.erase = ChannelGate(size, tied=tied), ChannelGate(size, tied=tied)
        self.write = ChannelGate(size, tied=False)  # values are not rotated
        self.A_log = nn.Parameter(torch.empty(size.heads))
        self.dt_bias = nn.Parameter(torch.empty(size.heads, channels_of(size, tied=tied)))
        self._add_features(size.width, size.heads, rank, alpha)
        self.reset_parameters()

    def reset_gates(self, generator: torch.Generator | None) -> None:
        for gate in (self.decay, self.erase, self.write):
            gate.reset_parameters(generator)
        start_slow(self.A_log, self.dt_bias, generator)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log decay, erase and write gates, ``[B, T, H, D]`` each, float32."""
        erase, write = (gate.spread(torch.sigmoid(gate(x).float())) for gate in (self.erase, self.write))
        return channel_decay(self.decay, x, self.A_log, self.dt_bias), erase, write

    def advance(self, written: tuple[Tensor, ...], state: Tensor, *, frame_tokens: int) -> Tensor:
        k, v, g, erase, write = written
        return channel_delta_state(k=k, v=v, g=g, erase=erase, write=write, initial_state=state)
