"""Kind V: a windowed hybrid layer whose state takes all tokens of a frame in one joint write.

After Video Delta Attention (Video DeltaNet, arXiv 2609.20744): a frame has one decay per channel, and its tokens are
written together, as the least-squares problem that they pose; raster order does not matter inside a frame. What the
paper reads in both directions of a clip is read here as in every streaming layer: from the past alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from arl2.attention.channel_gate import channel_gate_flops
from arl2.attention.cost import HeadSize
from arl2.attention.kimi_delta import DECAY_PARTS, KimiDeltaBranch
from arl2.attention.kind import Part
from arl2.attention.layer_memory import MemoryGeometry
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
    saves_again: ClassVar = {4: (37.0, 0.0, -5.0), 2: (32.5, 0.0, -4.8)}

    def branch(self, size: HeadSize) -> "VideoDeltaBranch":
        return VideoDeltaBranch(size, self.rank, self.alpha, tied=self.ties_pairs)

    def gate_flops(self, size: HeadSize, tokens: int) -> int:
        return channel_gate_flops(size, tokens, tied=self.ties_pairs) + 2 * tokens * size.width * size.heads

    def update_flops(self, size: HeadSize, block: MemoryGeometry) -> int:
        # Of each frame one matrix is factored and solved for as many right sides as channels.
        solve = block.batch * block.block_frames * size.heads * 7 * size.head_dim**3 // 3
        return 4 * block.block_tokens * size.heads * size.head_dim**2 + solve


class VideoDeltaBranch(KimiDeltaBranch):
    """``S <- (I + K^T diag(beta) K)^-1 (diag(exp g) S + K^T diag(beta) V)``, frame after frame.

    The gates are those of Kimi Delta Attention; of a decay a frame takes the mean.
    """

    def advance(self, written: tuple[Tensor, ...], state: Tensor, *, frame_tokens: int) -> Tensor:
        k, v, g, beta = written
        # Weighed so that a frame of any size counts as much against the past as one write in every direction.
        strength = beta * (k.shape[-1] / frame_tokens)
        return frame_delta_state(k=k, v=v, g=g, beta=strength, frame_tokens=frame_tokens, initial_state=state)
