"""Kind V: a windowed hybrid layer whose state takes all tokens of a frame in one joint write.

After Video Delta Attention (Video DeltaNet, arXiv 2609.20744): a frame has one decay per channel, and its tokens are
written together, as the least-squares problem that they pose; raster order does not matter inside a frame. What the
paper reads in both directions of a clip is read here as in every streaming layer: from the past alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from arl2.attention.channel_gate import ChannelGate, channel_gate_flops, channels_of
from arl2.attention.cost import HeadSize
from arl2.attention.kimi_delta import DECAY_PARTS, channel_decay
from arl2.attention.kind import Part
from arl2.attention.layer_memory import MemoryGeometry
from arl2.attention.state_branch import Gate, MemoryBranch, start_slow
from arl2.attention.windowed import FEATURE_PARTS, WindowedSpec
from arl2.kernels.delta_forms import frame_delta_state


@dataclass(frozen=True)
class VideoDeltaSpec(WindowedSpec):
    """One write per frame."""

    letter: ClassVar[str] = "V"
    name: ClassVar[str] = "windowed video delta"
    parts: ClassVar = (*DECAY_PARTS, Part("b_proj", 1, ("state.beta_proj.weight",)), *FEATURE_PARTS)
    # States and factors are kept once a frame: small heads keep less of them for each token.
    saves: ClassVar = {4: ((145.0, 8.0, -7.0), (65.8, 0.0, -6.8)), 2: ((127.0, 4.0, -7.0), (64.9, 0.0, -6.8))}

    def branch(self, size: HeadSize) -> "VideoDeltaBranch":
        return VideoDeltaBranch(size, self.rank, self.alpha, tied=self.ties_pairs)

    def gate_flops(self, size: HeadSize, tokens: int) -> int:
        return channel_gate_flops(size, tokens, tied=self.ties_pairs) + 2 * tokens * size.width * size.heads

    def update_flops(self, size: HeadSize, block: MemoryGeometry) -> int:
        # Of each frame one matrix is factored and solved for as many right sides as channels.
        solve = block.batch * block.block_frames * size.heads * 7 * size.head_dim**3 // 3
        return 4 * block.block_tokens * size.heads * size.head_dim**2 + solve


class VideoDeltaBranch(MemoryBranch):
    """``S <- (I + K^T diag(beta) K)^-1 (diag(exp g) S + K^T diag(beta) V)``, frame after frame."""

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
        """Log decay ``[B, T, H, D]``, of which a frame takes the mean, and strength ``[B, T, H]``, float32."""
        return channel_decay(self.decay, x, self.A_log, self.dt_bias), 2 * torch.sigmoid(self.beta_proj(x).float())

    def advance(self, written: tuple[Tensor, ...], state: Tensor, *, frame_tokens: int) -> Tensor:
        k, v, g, beta = written
        # Weighed so that a frame of any size counts as much against the past as one write in every direction.
        strength = beta * (k.shape[-1] / frame_tokens)
        return frame_delta_state(k=k, v=v, g=g, beta=strength, frame_tokens=frame_tokens, initial_state=state)
