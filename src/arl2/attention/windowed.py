"""The windowed hybrid layer: softmax over a window and one recurrent state for what is older, in one layer.

    o = window + openness * sigmoid(W_g x) * read,   openness = 0 at the start

``window`` is what a softmax layer with the same window computes, ``read`` what the tokens read from the state.
``openness`` is one number per head: a layer that was just converted *is* the windowed softmax layer, and training opens
it. :class:`~arl2.attention.state_form.StateForm` says how the state is read and mixed in, the branch how it is written.

Kinds of this family differ in the branch alone: :class:`WindowedSpec` is their common base.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.cost import HeadSize, MemoryBytes, PassFlops, saved_bytes
from arl2.attention.horizon import states_read
from arl2.attention.hybrid import SECOND_WRITE
from arl2.attention.key_value_cache import KeyValueCache
from arl2.attention.kind import Access, AttentionSpec, Part
from arl2.attention.layer_memory import LayerMemory, MemoryGeometry
from arl2.attention.layout import ClipLayout
from arl2.attention.projections import Projected, Projections, RMSNorm
from arl2.attention.softmax import VisibleKeys, visible_keys
from arl2.attention.state_branch import Gate, MemoryBranch, ReadsState, StateBranch, read_state
from arl2.attention.state_form import StateForm
from arl2.attention.windowed_memory import WindowedMemory
from arl2.errors import ConfigError
from arl2.geometry import FrameRange, SinkPositions
from arl2.kernels.attention import range_attention
from arl2.kernels.attention.mass import range_log_mean_mass
from arl2.kernels.backends import ATTENTION, DELTA_RULE
from arl2.kernels.delta_rule.chunked import CHUNK
from arl2.kernels.rope import Rotation

FEATURE_PARTS = (
    *(Part(f"phi_{x}", 1, (f"state.phi_{x}",)) for x in "qkv"),
    Part("gate_proj", 1, ("gate_proj.weight",)),
    Part("openness", 1, ("openness",), decays=False),
    Part("read_norm", 1, ("read_norm.weight",), decays=False),
    *(Part(f"lora_{x}", 2, (f"state.changes.{x}.A", f"state.changes.{x}.B"), hidden=True) for x in "qkv"),
)
"""What all kinds of the family train, whatever their branch adds."""

_WITH_MASS = 3  # products of two operations for each score and channel


@dataclass(frozen=True)
class WindowedSpec(AttentionSpec):
    """Softmax over a window beside a state: what all kinds of the family share.

    Attributes:
        window, sink, sink_positions: as of a softmax layer.
        block_frames: latent frames denoised together.
        rank, alpha: of the LoRAs of the state branch's q, k, v; rank 0 for none.
        form: how the state is read.
        horizon: latent frames that the state reaches back; None: to the first one.
        saves: multiples for ``saved_bytes`` by bytes of a number: of a whole layer, and of the self-attention alone.
            The scores that ``"log-sum-exp"`` keeps come on top.
        saves_again: the same of a block's write to a second state.
    """

    lora_in_ffn: ClassVar[bool] = True
    float32: ClassVar = ("A_log", "dt_bias", "openness")
    saves: ClassVar[Mapping[int, tuple[tuple[float, float, float], tuple[float, float, float]]]]
    saves_again: ClassVar[Mapping[int, tuple[float, float, float]]]

    window: int | None = None
    sink: int = 0
    sink_positions: SinkPositions = "absolute"
    block_frames: int = 3
    rank: int = 0
    alpha: float = 0.0
    form: StateForm = field(default_factory=StateForm)
    horizon: int | None = None

    def __post_init__(self) -> None:
        self.blocks_left_out(self.window, self.sink, self.block_frames)  # refuses what cannot be
        if self.horizon is not None and self.form.over == "evicted":
            raise ConfigError(
                f'state_form.over is "evicted" and state_horizon {self.horizon}: a state that lags behind its window '
                'has no horizon; give over "past", or no state_horizon.'
            )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "WindowedSpec":
        rank, alpha = config.get("state_rank", 0), config.get("low_rank_alpha")
        return cls(
            window=config.get("window"),
            sink=config.get("sink", 0),
            sink_positions=config.get("sink_positions", "absolute"),
            block_frames=config.get("block_frames", 3),
            rank=rank,
            alpha=2.0 * rank if alpha is None else float(alpha),
            form=StateForm.of_config(config),
            horizon=config.get("state_horizon"),
        )

    @abstractmethod
    def branch(self, size: HeadSize) -> MemoryBranch:
        """What the state is written with."""

    @abstractmethod
    def gate_flops(self, size: HeadSize, tokens: int) -> int:
        """Of the branch's gates."""

    @abstractmethod
    def update_flops(self, size: HeadSize, block: MemoryGeometry) -> int:
        """Of writing a block to the state."""

    @property
    def starts_as_softmax(self) -> bool:
        return self.form.sees == "window"

    @property
    def ties_pairs(self) -> bool:
        """Whether the two channels of a rotated pair share their gates.

        Then a gate commutes with the rotation, and all keys in a state can be turned at once.
        """
        return self.form.rotation == "full"

    def build(self, size: HeadSize, eps: float) -> "WindowedAttention":
        return WindowedAttention(size, eps, self)

    def blocks_left_out(self, window: int | None, sink: int, block_frames: int) -> int:
        """As :meth:`arl2.attention.state_form.StateForm.blocks_left_out`."""
        return self.form.blocks_left_out(window, sink, block_frames)

    def seeing(self, window: int | None) -> "WindowedSpec":
        return replace(self, window=window, sink=self.sink if window is not None else 0)

    def seeing_own_block(self) -> "WindowedSpec":
        if self.form.sees == "block":
            return self  # sees no more anyway
        return replace(self, window=self.block_frames, sink=0)

    def memory_bytes(self, size: HeadSize, *, batch: int, frame_tokens: int, element_size: int) -> MemoryBytes:
        count = 1 + self.blocks_left_out(self.window, self.sink, self.block_frames)
        count += self.horizon is not None
        states = count * batch * size.heads * size.head_dim**2 * torch.float32.itemsize
        if self.form.sees == "block":
            return MemoryBytes(states=states)
        keys = batch * frame_tokens * size.width * element_size
        return MemoryBytes(states=states, cache_per_frame=2 * keys, moved_sink=keys, growth_per_frame=keys)

    def read_flops(self, size: HeadSize, block: MemoryGeometry, past_frames: int) -> PassFlops:
        tokens, width = block.block_tokens, size.width
        past = past_frames if self.form.sees == "window" else 0
        seen = (past + block.block_frames) * block.frame_tokens
        # The mass of the window is the product of queries and keys once more.
        products = _WITH_MASS if self.form.mixing == "log-sum-exp" else 2
        query = 2 * tokens * width * size.head_dim + 4 * tokens * width * self.rank  # phi and LoRA
        return PassFlops(
            linear=8 * tokens * width**2 + query + 2 * tokens * width * size.heads,
            self_attention=2 * products * tokens * seen * width,
            state_read=2 * tokens * width * size.head_dim,
        )

    def write_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        tokens, width = block.block_tokens, size.width
        features = 4 * tokens * width * size.head_dim + 8 * tokens * width * self.rank  # phi and LoRA of k and v
        update = self.update_flops(size, block) * (1 if self.horizon is None else 2)
        return PassFlops(linear=features + self.gate_flops(size, tokens), state_update=update)

    def write_alone_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        return self.write_flops(size, block) + PassFlops(linear=4 * block.block_tokens * size.width**2)

    def pass_bytes(self, size: HeadSize, element_size: int) -> int:
        # As a hybrid layer, and the read once more, mixed.
        return (9 * element_size + 7 * max(4, element_size)) * size.width

    def kept_bytes(self, size: HeadSize, ffn_dim: int, element_size: int) -> float:
        return saved_bytes(self.saves[element_size][0], size, ffn_dim) + self._kept_again(size, element_size)

    def kept_scores(self, size: HeadSize, element_size: int) -> float:
        if self.form.mixing != "log-sum-exp":
            return 0.0
        return max(4, element_size) / (2 * _WITH_MASS * size.head_dim)

    def kept_bytes_alone(self, size: HeadSize, element_size: int) -> float:
        return saved_bytes(self.saves[element_size][1], size, 0) + self._kept_again(size, element_size)

    def _kept_again(self, size: HeadSize, element_size: int) -> float:
        """Of the write to a second state, which a horizon brings once the first half of it has passed."""
        return 0.0 if self.horizon is None else saved_bytes(self.saves_again[element_size], size, 0)


@dataclass(frozen=True)
class WindowedHybridSpec(WindowedSpec):
    """The state is written as in a hybrid layer: the gated delta rule, token after token."""

    letter: ClassVar[str] = "W"
    name: ClassVar[str] = "windowed hybrid"
    kernels: ClassVar = (ATTENTION, DELTA_RULE)
    parts: ClassVar = (
        Part("a_proj", 1, ("state.decay_proj.weight",)),
        Part("b_proj", 1, ("state.beta_proj.weight",)),
        Part("A_log", 1, ("state.A_log",), decays=False),
        Part("dt_bias", 1, ("state.dt_bias",), decays=False),
        *FEATURE_PARTS,
    )
    saves: ClassVar = {4: ((110.1, 8.0, 5.2), (37.0, 0.0, 5.0)), 2: ((91.4, 4.0, 5.1), (36.1, 0.0, 5.0))}
    saves_again: ClassVar = SECOND_WRITE

    def branch(self, size: HeadSize) -> StateBranch:
        return StateBranch(size.width, size.heads, self.rank, self.alpha)

    def gate_flops(self, size: HeadSize, tokens: int) -> int:
        return 4 * tokens * size.width * size.heads

    def update_flops(self, size: HeadSize, block: MemoryGeometry) -> int:
        return block.block_tokens * size.heads * (4 * size.head_dim**2 + 3 * CHUNK * size.head_dim)


class WindowedAttention(ReadsState):
    """Attend to a window, remember linearly."""

    spec: WindowedSpec
    splits_heads = True

    def __init__(self, size: HeadSize, eps: float, spec: WindowedSpec) -> None:
        super().__init__()
        self.shared = Projections(size.width, size.heads, eps)
        self.state = spec.branch(size)
        self.gate_proj = Gate(size.width, size.heads)
        self.openness = nn.Parameter(torch.empty(size.heads))
        self.read_norm = RMSNorm(size.head_dim, eps) if spec.form.normalized_read else None
        self.spec = spec
        self._reset_mixing(None)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialize as a hybrid layer, but closed; open where the own block alone is seen, as published."""
        self.state.reset_parameters(generator)
        self._reset_mixing(generator)

    def stream(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory, access: Access
    ) -> Float[Tensor, "batch tokens width"]:
        own = _own(memory)
        # In every form of mixing a zero read changes nothing. With gradients queries and gates get theirs, zeros too.
        reads = not own.is_blank or torch.is_grad_enabled()
        of_state: list[Tensor] = []
        if reads:
            raw, *of_state = self.state.project(x, self, self._of_state(rotation))
        else:
            raw = self.shared.project(x)
        inputs = self.shared.rotated_inputs(raw, rotation)
        q, k, v, *of_state = self.parallel.to_heads(*inputs, *of_state, frame_tokens=own.frame_tokens)
        if own.cache is not None:
            k, v = own.cache.with_block(k, v)
        if reads and self.spec.form.mixing == "log-sum-exp":
            mixed, mass = self.shared.attend_with_mass(q, k, v)
        else:
            mixed, mass = self.shared.attend(q, k, v), None
        if reads:
            queries, gate = of_state
            mixed = self.mixed(mixed, read_state(queries, own.read()), gate, mass)
        if access is Access.COMMIT:
            self._write(x, raw.k, raw.v, rotation, own)
        return self.shared.merge(self.parallel.to_tokens(mixed, frame_tokens=own.frame_tokens, dtype=x.dtype))

    def commit(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory) -> None:
        own = _own(memory)
        raw_k, raw_v = self.shared.project_keys(x)
        if own.cache is not None:
            k, v = self.shared.key(raw_k, rotation), self.shared.split(raw_v)
            own.cache.write(*self.parallel.to_heads(k, v, frame_tokens=own.frame_tokens))
        self._write(x, raw_k, raw_v, rotation, own)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, layout: ClipLayout
    ) -> Float[Tensor, "batch tokens width"]:
        raw = self.shared.project(x)
        q, k, v = self.shared.rotated_inputs(raw, rotation)
        seen = self._visible(k, v, layout)
        attended = range_attention(q=q, k=seen.k, v=seen.v, ranges=seen.ranges)
        is_weighed = self.spec.form.mixing == "log-sum-exp"
        mass = range_log_mean_mass(q=q, k=seen.k, ranges=seen.ranges) if is_weighed else None
        read = self._read_all_blocks(x, raw, rotation, layout)
        return self.shared.merge(self.mixed(attended, read, self.gate_proj(x), mass))

    def allocate_memory(
        self,
        geometry: MemoryGeometry,
        *,
        window: int | None,
        sink: int,
        sink_positions: SinkPositions,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> WindowedMemory:
        heads, head_dim, _ = self.state.phi_q.shape
        own_heads, form = self.parallel.own_heads(heads), self.spec.form
        count = 1 + self.spec.blocks_left_out(window, sink, geometry.block_frames)
        horizon = self.spec.horizon
        cache = None
        if form.sees == "window":
            cache = KeyValueCache(
                geometry,
                own_heads,
                head_dim,
                window=window,
                sink=sink,
                sink_positions=sink_positions,
                dtype=dtype,
                device=device,
            )
        shape = (geometry.batch, count, own_heads, head_dim, head_dim)
        states = torch.zeros(shape, dtype=torch.float32, device=device)
        return WindowedMemory(geometry, states, cache, turns=form.rotation == "full", horizon=horizon)

    def _reset_mixing(self, generator: torch.Generator | None) -> None:
        nn.init.xavier_uniform_(self.gate_proj.weight, gain=2**-2.5, generator=generator)
        nn.init.constant_(self.openness, 0.0 if self.spec.form.sees == "window" else 1.0)
        if self.read_norm is not None:
            nn.init.ones_(self.read_norm.weight)

    def _of_state(self, rotation: Rotation) -> Rotation:
        kind = self.spec.form.rotation
        if kind == "full":
            return rotation
        return rotation.without_frames() if kind == "spatial" else rotation.none()

    def _visible(self, k: Tensor, v: Tensor, layout: ClipLayout) -> VisibleKeys:
        spec = self.spec
        if spec.form.sees == "block":
            return VisibleKeys(k, v, layout.own_block())
        return visible_keys(k, v, layout, window=spec.window, sink=spec.sink, sink_positions=spec.sink_positions)

    def mixed(self, attended: Tensor, read: Tensor, gate: Tensor, mass: Tensor | None) -> Tensor:
        """What ``to_out`` gets, ``[B, T, H, D]``, at least float32.

        Args:
            attended: over the window, ``[B, T, H, D]``.
            read: from the state, ``[B, T, H, D]``; 0 where the state is empty.
            gate: ``[B, T, H]``.
            mass: of the window, as :func:`arl2.kernels.attention.mass.log_mean_mass` gives it.
        """
        if self.read_norm is not None:
            read = self.read_norm(read.flatten(1, 2)).view_as(read)
        logit = gate.float() if mass is None else gate.float() - mass
        weight = (self.parallel.share(self.openness, 0).float() * torch.sigmoid(logit))[..., None]
        if self.spec.form.mixing == "additive":
            return torch.addcmul(attended, weight, read) if attended.dtype == read.dtype else attended + weight * read
        # Towards nothing would take away from the window: an empty state, which reads as zero, does not count.
        known = (read != 0).any(-1, keepdim=True)
        return attended + torch.where(known, weight * (read - attended), 0.0)

    def _write(self, x: Tensor, raw_k: Tensor, raw_v: Tensor, rotation: Rotation, memory: WindowedMemory) -> None:
        written = self.state.writes(x, raw_k, raw_v, self.shared, self._of_state(rotation))
        written = self.parallel.to_heads(*written, frame_tokens=memory.frame_tokens)
        memory.update(lambda states: self.state.advance_all(written, states, frame_tokens=memory.frame_tokens))

    def _read_all_blocks(self, x: Tensor, raw: Projected, rotation: Rotation, layout: ClipLayout) -> Tensor:
        """What each block of every copy reads: the state after all blocks that it knows of, as in streaming.

        Only the first copy is written (the clean half under teacher forcing, else the clip itself), and of it no block
        that nobody reads.
        """
        spec, frame_tokens = self.spec, layout.frame_tokens
        left_out = spec.blocks_left_out(spec.window, spec.sink, max(len(block) for block in layout.blocks))
        queries = self.state.queries(x, raw, self.shared, self._of_state(rotation))
        readable = max(0, len(layout.blocks) - 1 - left_out)
        batch, _, heads, head_dim = queries.shape
        start = queries.new_zeros(batch, heads, head_dim, head_dim, dtype=torch.float32)
        states = [start]
        if readable:
            end = layout.span(layout.blocks[readable - 1])[1]
            turned = self._of_state(rotation.first(end))
            written = self.state.writes(x[:, :end], raw.k[:, :end], raw.v[:, :end], self.shared, turned)

            def advance(block: FrameRange, states: Sequence[Tensor]) -> Sequence[Tensor]:
                part = slice(*layout.span(block))
                return self.state.advance_all([one[:, part] for one in written], states, frame_tokens=frame_tokens)

            states = states_read(layout.blocks[: readable + 1], start, spec.horizon, advance)
        reads = [
            read_state(queries[:, slice(*layout.span(block, offset))], states[max(0, i - left_out)])
            for offset in layout.copies()
            for i, block in enumerate(layout.blocks)
        ]
        return torch.cat(reads, dim=1)


def _own(memory: LayerMemory) -> WindowedMemory:
    assert isinstance(memory, WindowedMemory)  # Memory.check has refused another model's memory
    return memory
