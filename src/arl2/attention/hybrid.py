"""The hybrid layer: softmax inside the block, one recurrent state for everything older.

    o = intra + sigma(W_g x) * inter                                  (ARL2, arXiv 2605.16579)

``intra`` is bidirectional softmax attention among the block's tokens, ``inter`` what they read from the state. The
state is read as it was before the block, and written once, by the clean pass.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.access import Access
from arl2.attention.base import SelfAttention
from arl2.attention.gate import Gate
from arl2.attention.layout import ClipLayout
from arl2.attention.memory import LayerMemory, MemoryGeometry, RecurrentState
from arl2.attention.plan import HybridSpec, SinkPositions
from arl2.attention.projections import Projected, Projections
from arl2.attention.state_branch import StateBranch, read_state
from arl2.kernels.attention import range_attention, softmax_attention
from arl2.kernels.delta_rule import gated_delta_state
from arl2.kernels.rope import Rotation


class HybridAttention(SelfAttention):
    """Attend locally, remember linearly."""

    def __init__(self, width: int, heads: int, eps: float, spec: HybridSpec) -> None:
        super().__init__()
        self.shared = Projections(width, heads, eps)
        self.state = StateBranch(width, heads, spec)
        self.gate_proj = Gate(width, heads)
        self.reset_gate()
        self.spec = spec

    def reset_gate(self, generator: torch.Generator | None = None) -> None:
        """The start of a conversion: small weights, so that the gate stands half open (spec 1, "Start values")."""
        nn.init.xavier_uniform_(self.gate_proj.weight, gain=2**-2.5, generator=generator)

    def stream(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory, access: Access
    ) -> Float[Tensor, "batch tokens width"]:
        own = _own(memory)
        raw = self.shared.project(x)
        q, k, v = self.shared.attention_inputs(raw)
        intra = softmax_attention(q=rotation(q), k=rotation(k), v=v)
        inter = self.state.read(x, raw, self.shared, rotation, own.read())
        if access is Access.COMMIT:
            self._write(x, raw.k, raw.v, rotation, own)
        return self.shared.merge(intra + self._gate(x) * inter)

    def commit(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory) -> None:
        self._write(x, self.shared.to_k(x), self.shared.to_v(x), rotation, _own(memory))

    def parallel(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, layout: ClipLayout
    ) -> Float[Tensor, "batch tokens width"]:
        raw = self.shared.project(x)
        q, k, v = self.shared.attention_inputs(raw)
        intra = range_attention(q=rotation(q), k=rotation(k), v=v, ranges=layout.own_block())
        inter = self._read_all_blocks(x, raw, rotation, layout)
        return self.shared.merge(intra + self._gate(x) * inter)

    def allocate_memory(
        self,
        geometry: MemoryGeometry,
        *,
        window: int | None,
        sink: int,
        sink_positions: SinkPositions,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> RecurrentState:
        heads, head_dim, _ = self.state.phi_q.shape
        return RecurrentState(geometry, heads, head_dim, device)

    def _gate(self, x: Tensor) -> Tensor:
        """One number per token and head, ``[B, T, H, 1]``."""
        return torch.sigmoid(self.gate_proj(x).float())[..., None]

    def _write(self, x: Tensor, raw_k: Tensor, raw_v: Tensor, rotation: Rotation, memory: RecurrentState) -> None:
        state = self.state.update(x, raw_k, raw_v, self.shared, rotation, memory.read())
        memory.write(state, x.shape[1] // memory.frame_tokens)

    def _read_all_blocks(self, x: Tensor, raw: Projected, rotation: Rotation, layout: ClipLayout) -> Tensor:
        """What streaming would read: each block, in every copy of the clip, reads the state before it.

        The first copy is the one that writes: the clean half under teacher forcing, else the clip itself. Nothing
        reads what its last block would write.
        """
        queries = self.state.queries(x, raw, self.shared, rotation)
        written = layout.blocks[-1].start * layout.frame_tokens
        keys, values, g, beta = self.state.writes(
            x[:, :written], raw.k[:, :written], raw.v[:, :written], self.shared, rotation.first(written)
        )
        batch, _, heads, head_dim = queries.shape
        state = queries.new_zeros(batch, heads, head_dim, head_dim, dtype=torch.float32)
        reads: list[list[Tensor]] = [[] for _ in layout.copies()]
        for block in layout.blocks:
            for copy, offset in enumerate(layout.copies()):
                start, stop = layout.span(block, offset)
                reads[copy].append(read_state(queries[:, start:stop], state))
            if block is not layout.blocks[-1]:
                part = slice(*layout.span(block))
                state = gated_delta_state(
                    k=keys[:, part], v=values[:, part], g=g[:, part], beta=beta[:, part], initial_state=state
                )
        return torch.cat([part for copy in reads for part in copy], dim=1)


def _own(memory: LayerMemory) -> RecurrentState:
    assert isinstance(memory, RecurrentState)  # Memory.check has refused another model's memory
    return memory
