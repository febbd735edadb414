"""The hybrid layer: softmax inside the block, one recurrent state for everything older.

    o = intra + sigmoid(W_g x) * inter                                (ARL2, arXiv 2605.16579)

``intra`` is bidirectional softmax attention among the block's tokens, ``inter`` what they read from the state. The
state is read as it was before the block, and written once, by the cache-update pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.cost import HeadSize, MemoryBytes, PassFlops, saved_bytes
from arl2.attention.horizon import states_read
from arl2.attention.kind import Access, AttentionSpec, Part, PublishedName
from arl2.attention.layer_memory import LayerMemory, MemoryGeometry
from arl2.attention.layout import ClipLayout
from arl2.attention.lora import common_rank
from arl2.attention.projections import Projected, Projections
from arl2.attention.recurrent_state import RecurrentState
from arl2.attention.state_branch import Gate, ReadsState, StateBranch, read_state
from arl2.errors import CheckpointError
from arl2.geometry import FrameRange, SinkPositions
from arl2.kernels.attention import range_attention
from arl2.kernels.backends import ATTENTION, DELTA_RULE
from arl2.kernels.delta_rule.chunked import CHUNK
from arl2.kernels.fused import with_read
from arl2.kernels.rope import Rotation


def _to_matrices(tensor: Tensor) -> Tensor:
    """Grouped 1x1 convolution ``[d, D, 1]`` -> one matrix per head ``[H, D, D]``; other shapes are refused later."""
    if tensor.dim() != 3 or tensor.shape[2] != 1 or tensor.shape[0] % tensor.shape[1]:
        return tensor
    return tensor.reshape(-1, tensor.shape[1], tensor.shape[1])


def _to_convolution(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1], 1)


@dataclass(frozen=True)
class HybridSpec(AttentionSpec):
    """Softmax inside the block, one recurrent state for the past.

    Attributes:
        rank: LoRA rank of the state branch's q, k, v; 0 for no LoRA.
        alpha: LoRA alpha; the update is scaled by ``alpha / rank``.
        horizon: latent frames that the state reaches back; None: to the first one, as published.
    """

    letter: ClassVar[str] = "H"
    name: ClassVar[str] = "hybrid"
    lora_in_ffn: ClassVar[bool] = True
    float32: ClassVar = ("A_log", "dt_bias")
    kernels: ClassVar = (ATTENTION, DELTA_RULE)
    recognised_by: ClassVar = "state.A_log"
    parts: ClassVar = (
        Part("a_proj", 1, ("state.decay_proj.weight",)),
        Part("b_proj", 1, ("state.beta_proj.weight",)),
        Part("A_log", 1, ("state.A_log",), decays=False),
        Part("dt_bias", 1, ("state.dt_bias",), decays=False),
        *(Part(f"phi_{x}", 1, (f"state.phi_{x}",)) for x in "qkv"),
        Part("gate_proj", 1, ("gate_proj.weight",)),
        *(Part(f"lora_{x}", 2, (f"state.changes.{x}.A", f"state.changes.{x}.B"), hidden=True) for x in "qkv"),
    )
    published_names: ClassVar = (
        PublishedName("a_proj.weight", "state.decay_proj.weight"),
        PublishedName("b_proj.weight", "state.beta_proj.weight"),
        PublishedName("A_log", "state.A_log"),
        PublishedName("dt_bias", "state.dt_bias"),
        PublishedName("gate_proj.weight", "gate_proj.weight"),
        *(PublishedName(f"lora_{x}_{part}", f"state.changes.{x}.{part}") for x in "qkv" for part in "AB"),
        *(PublishedName(f"phi_{x}.weight", f"state.phi_{x}", _to_matrices, _to_convolution) for x in "qkv"),
    )

    rank: int = 0
    alpha: float = 0.0
    horizon: int | None = None

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "HybridSpec":
        rank, alpha = config.get("state_rank", 0), config.get("low_rank_alpha")
        return cls(rank, 2.0 * rank if alpha is None else float(alpha), config.get("state_horizon"))

    @classmethod
    def settings_of(cls, layers: Mapping[int, Mapping[str, Tensor]], width: int, where: str) -> dict[str, Any]:
        decays = {i: own["state.A_log"] for i, own in layers.items() if "state.A_log" in own}
        counts = {decay.numel() for decay in decays.values()}
        heads = counts.pop()
        if counts or heads == 0 or width % heads:
            raise CheckpointError(f"{where}: the A_log tensors do not agree on a number of heads for width {width}.")
        ranks = {i: own["state.changes.q.A"].shape[-1] for i, own in layers.items() if "state.changes.q.A" in own}
        return {"num_attention_heads": heads, "state_rank": common_rank(ranks, set(decays), where)}

    def build(self, size: HeadSize, eps: float) -> "HybridAttention":
        return HybridAttention(size, eps, self)

    def memory_bytes(self, size: HeadSize, *, batch: int, frame_tokens: int, element_size: int) -> MemoryBytes:
        count = 1 if self.horizon is None else 2
        return MemoryBytes(states=count * batch * size.heads * size.head_dim**2 * torch.float32.itemsize)

    def read_flops(self, size: HeadSize, block: MemoryGeometry, past_frames: int) -> PassFlops:
        tokens, width = block.block_tokens, size.width
        query = 2 * tokens * width * size.head_dim + 4 * tokens * width * self.rank  # phi and LoRA
        gate = 2 * tokens * width * size.heads
        return PassFlops(
            linear=8 * tokens * width**2 + query + gate,
            self_attention=4 * tokens * block.block_frames * block.frame_tokens * width,
            state_read=2 * tokens * width * size.head_dim,
        )

    def write_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        tokens, width, head_dim = block.block_tokens, size.width, size.head_dim
        features = 4 * tokens * width * head_dim + 8 * tokens * width * self.rank  # phi and LoRA of k and v
        gates = 4 * tokens * width * size.heads  # decay and strength
        update = tokens * size.heads * (4 * head_dim**2 + 3 * CHUNK * head_dim)
        update *= 1 if self.horizon is None else 2
        return PassFlops(linear=features + gates, state_update=update)

    def write_alone_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        return self.write_flops(size, block) + PassFlops(linear=4 * block.block_tokens * size.width**2)

    def pass_bytes(self, size: HeadSize, element_size: int) -> int:
        # A softmax layer's working memory plus the state branch's copies, and sixteen float32 numbers a head for its
        # gates and decays.
        return (9 * element_size + 5 * max(4, element_size)) * size.width + 64 * size.heads

    def kept_bytes(self, size: HeadSize, ffn_dim: int, element_size: int) -> float:
        return saved_bytes(_LAYER_SAVES[element_size], size, ffn_dim) + self._kept_again(size, element_size)

    def kept_bytes_alone(self, size: HeadSize, element_size: int) -> float:
        return saved_bytes(_ATTENTION_SAVES[element_size], size, 0) + self._kept_again(size, element_size)

    def _kept_again(self, size: HeadSize, element_size: int) -> float:
        """Of the write to a second state, which a horizon brings once the first half of it has passed."""
        return 0.0 if self.horizon is None else saved_bytes(SECOND_WRITE[element_size], size, 0)


# Activations that autograd saves per token, by element size, as multiples for ``saved_bytes``: whole layer with the
# feed-forward's LoRA, and self-attention alone.
_LAYER_SAVES = {4: (97.5, 8.0, 5.2), 2: (85.1, 4.0, 5.0)}
_ATTENTION_SAVES = {4: (37.0, 0.0, 4.9), 2: (36.1, 0.0, 4.9)}
SECOND_WRITE = {4: (22.6, 0.0, 4.4), 2: (18.7, 0.0, 4.3)}
"""The same of a block's write to a second state, by the published rule."""


class HybridAttention(ReadsState):
    """Attend locally, remember linearly."""

    spec: HybridSpec
    splits_heads = True

    def __init__(self, size: HeadSize, eps: float, spec: HybridSpec) -> None:
        super().__init__()
        self.shared = Projections(size.width, size.heads, eps)
        self.state = StateBranch(size.width, size.heads, spec.rank, spec.alpha)
        self.gate_proj = Gate(size.width, size.heads)
        self._reset_gate(None)
        self.spec = spec

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialize as in the published code: identity feature maps, slow decay, output gate near 0.5."""
        self.state.reset_parameters(generator)
        self._reset_gate(generator)

    def stream(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory, access: Access
    ) -> Float[Tensor, "batch tokens width"]:
        own = _own(memory)
        if own.is_blank and not torch.is_grad_enabled():
            # What is read is zero, whatever the queries and gates. With gradients these get theirs, zeros too.
            raw = self.shared.project(x)
            inputs = self.shared.rotated_inputs(raw, rotation)
            q, k, v = self.parallel.to_heads(*inputs, frame_tokens=own.frame_tokens)
            mixed = self.shared.attend(q, k, v)
        else:
            raw, queries, gate = self.state.project(x, self, rotation)
            inputs = self.shared.rotated_inputs(raw, rotation)
            q, k, v, queries, gate = self.parallel.to_heads(*inputs, queries, gate, frame_tokens=own.frame_tokens)
            intra = self.shared.attend(q, k, v)
            mixed = with_read(intra, gate, read_state(queries, own.read()))
        if access is Access.COMMIT:
            self._write(x, raw.k, raw.v, rotation, own)
        return self.shared.merge(self.parallel.to_tokens(mixed, frame_tokens=own.frame_tokens, dtype=x.dtype))

    def commit(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory) -> None:
        self._write(x, *self.shared.project_keys(x), rotation, _own(memory))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, layout: ClipLayout
    ) -> Float[Tensor, "batch tokens width"]:
        raw = self.shared.project(x)
        q, k, v = self.shared.rotated_inputs(raw, rotation)
        intra = range_attention(q=q, k=k, v=v, ranges=layout.own_block())
        inter = self._read_all_blocks(x, raw, rotation, layout)
        return self.shared.merge(with_read(intra, self.gate_proj(x), inter))

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
        return RecurrentState(geometry, self.parallel.own_heads(heads), head_dim, device, horizon=self.spec.horizon)

    def _reset_gate(self, generator: torch.Generator | None) -> None:
        nn.init.xavier_uniform_(self.gate_proj.weight, gain=2**-2.5, generator=generator)

    def _write(self, x: Tensor, raw_k: Tensor, raw_v: Tensor, rotation: Rotation, memory: RecurrentState) -> None:
        written = self.state.writes(x, raw_k, raw_v, self.shared, rotation)
        written = self.parallel.to_heads(*written, frame_tokens=memory.frame_tokens)
        memory.update(lambda states: self.state.advance_all(written, states, frame_tokens=memory.frame_tokens))

    def _read_all_blocks(self, x: Tensor, raw: Projected, rotation: Rotation, layout: ClipLayout) -> Tensor:
        """What each block of every copy reads: the state after all earlier blocks, as in streaming.

        Only the first copy updates the state (the clean half under teacher forcing, else the clip itself). The last
        block is not written, since no block reads it.
        """
        queries = self.state.queries(x, raw, self.shared, rotation)
        frame_tokens, end = layout.frame_tokens, layout.blocks[-1].start * layout.frame_tokens
        written = self.state.writes(x[:, :end], raw.k[:, :end], raw.v[:, :end], self.shared, rotation.first(end))

        def advance(block: FrameRange, states: Sequence[Tensor]) -> Sequence[Tensor]:
            part = slice(*layout.span(block))
            return self.state.advance_all([one[:, part] for one in written], states, frame_tokens=frame_tokens)

        batch, _, heads, head_dim = queries.shape
        start = queries.new_zeros(batch, heads, head_dim, head_dim, dtype=torch.float32)
        states = states_read(layout.blocks, start, self.spec.horizon, advance)
        reads = [
            read_state(queries[:, slice(*layout.span(block, offset))], state)
            for offset in layout.copies()
            for block, state in zip(layout.blocks, states, strict=True)
        ]
        return torch.cat(reads, dim=1)


def _own(memory: LayerMemory) -> RecurrentState:
    assert isinstance(memory, RecurrentState)  # Memory.check has refused another model's memory
    return memory
