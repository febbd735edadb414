"""The softmax layer: a block attends to itself and to the cached keys and values of the past."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.cost import HeadSize, MemoryBytes, PassFlops, saved_bytes
from arl2.attention.key_value_cache import KeyValueCache
from arl2.attention.kind import Access, AttentionSpec, SelfAttention
from arl2.attention.layer_memory import LayerMemory, MemoryGeometry
from arl2.attention.layout import ClipLayout
from arl2.attention.plan import BASELINE
from arl2.attention.projections import Projections
from arl2.errors import ConfigError
from arl2.geometry import SinkPositions
from arl2.kernels.attention import Ranges, range_attention
from arl2.kernels.rope import Rotation, turn_frames


@dataclass(frozen=True)
class SoftmaxSpec(AttentionSpec):
    """Softmax over the block and the past, the past kept in a key-value cache.

    Attributes:
        window: latent frames visible, the current block included; None sees the whole past.
        sink: first frames of the stream that the window never evicts.
        sink_positions: where the sinks stand for a block that sees them. ``"absolute"``, as published: at their own
            frames, ever farther away. ``"relative"``: right before the oldest frame of the window, so that no distance
            is longer than the window; the same until the window slides.
    """

    letter: ClassVar[str] = BASELINE
    name: ClassVar[str] = "softmax"
    published_names: ClassVar = ()

    window: int | None = None
    sink: int = 0
    sink_positions: SinkPositions = "absolute"

    def __post_init__(self) -> None:
        if self.sink < 0 or (self.window is not None and self.window <= self.sink):
            raise ConfigError(
                f"A window must hold more frames than its sink; got window {self.window} and sink {self.sink}."
            )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "SoftmaxSpec":
        return cls(config.get("window"), config.get("sink", 0), config.get("sink_positions", "absolute"))

    def build(self, size: HeadSize, eps: float) -> "SoftmaxAttention":
        return SoftmaxAttention(size, eps, self)

    def seeing(self, window: int | None) -> "SoftmaxSpec":
        return replace(self, window=window, sink=self.sink if window is not None else 0)

    def memory_bytes(self, size: HeadSize, *, batch: int, frame_tokens: int, element_size: int) -> MemoryBytes:
        keys = batch * frame_tokens * size.width * element_size
        # A sink that moves has its keys kept twice: as they were written and as they stand now.
        return MemoryBytes(cache_per_frame=2 * keys, moved_sink=keys, growth_per_frame=keys)

    def read_flops(self, size: HeadSize, block: MemoryGeometry, past_frames: int) -> PassFlops:
        tokens, seen = block.block_tokens, (past_frames + block.block_frames) * block.frame_tokens
        return PassFlops(linear=8 * tokens * size.width**2, self_attention=4 * tokens * seen * size.width)

    def write_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        return PassFlops()  # the keys and values that were attended to are kept

    def write_alone_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        return PassFlops(linear=4 * block.block_tokens * size.width**2)

    def pass_bytes(self, size: HeadSize, element_size: int) -> int:
        # q, k, v and the output; normed and rotated copies go through float32.
        return (4 * element_size + 4 * max(4, element_size)) * size.width

    def kept_bytes(self, size: HeadSize, ffn_dim: int, element_size: int) -> float:
        return saved_bytes(_LAYER_SAVES[element_size], size, ffn_dim)

    def kept_bytes_alone(self, size: HeadSize, element_size: int) -> float:
        return 0.0  # it is what others are aligned to


# By bytes of a number; see saved_bytes.
_LAYER_SAVES = {4: (74.4, 4.0, 0.2), 2: (50.3, 2.0, 0.2)}


class SoftmaxAttention(SelfAttention):
    """Block-causal softmax attention: the baseline, and the layers that are not converted."""

    spec: SoftmaxSpec
    splits_heads = True

    def __init__(self, size: HeadSize, eps: float, spec: SoftmaxSpec) -> None:
        super().__init__()
        self.shared = Projections(size.width, size.heads, eps)
        self.spec = spec

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Nothing: a conversion adds nothing to it."""

    def stream(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory, access: Access
    ) -> Float[Tensor, "batch tokens width"]:
        # Whatever the access: what a block attends to is in the cache already, and a cache-update pass leaves it there.
        cache = _own(memory)
        tokens = cache.geometry.frame_tokens
        q, k, v = self.parallel.to_heads(
            *self.shared.rotated_inputs(self.shared.project(x), rotation), frame_tokens=tokens
        )
        seen_k, seen_v = cache.with_block(k, v)
        out = self.shared.attend(q, seen_k, seen_v)
        return self.shared.merge(self.parallel.to_tokens(out, frame_tokens=tokens, dtype=x.dtype))

    def commit(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory) -> None:
        cache = _own(memory)
        raw_k, raw_v = self.shared.project_keys(x)
        k, v = self.shared.key(raw_k, rotation), self.shared.split(raw_v)
        cache.write(*self.parallel.to_heads(k, v, frame_tokens=cache.geometry.frame_tokens))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, layout: ClipLayout
    ) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.shared.rotated_inputs(self.shared.project(x), rotation)
        spec = self.spec
        seen = visible_keys(k, v, layout, window=spec.window, sink=spec.sink, sink_positions=spec.sink_positions)
        return self.shared.merge(range_attention(q=q, k=seen.k, v=seen.v, ranges=seen.ranges))

    def allocate_memory(
        self,
        geometry: MemoryGeometry,
        *,
        window: int | None,
        sink: int,
        sink_positions: SinkPositions,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> KeyValueCache:
        width = self.shared.to_q.in_features
        heads = self.shared.heads
        return KeyValueCache(
            geometry,
            self.parallel.own_heads(heads),
            width // heads,
            window=window,
            sink=sink,
            sink_positions=sink_positions,
            dtype=dtype,
            device=device,
        )


class VisibleKeys(NamedTuple):
    """Keys and values of a clip, copies of sinks that move behind them, and what of them each block sees."""

    k: Tensor
    v: Tensor
    ranges: Ranges


def visible_keys(
    k: Float[Tensor, "batch tokens heads head"],
    v: Float[Tensor, "batch tokens heads head"],
    layout: ClipLayout,
    *,
    window: int | None,
    sink: int,
    sink_positions: SinkPositions,
) -> VisibleKeys:
    """What a window shows of a clip in a parallel pass, as a ``KeyValueCache`` would in a stream.

    Args:
        k: rotated at the tokens' own frames.
    """
    if sink_positions == "absolute":
        return VisibleKeys(k, v, layout.visible(window, sink))
    seen, moves = layout.visible_with_moved_sinks(window, sink)
    tokens = sink * layout.frame_tokens
    k = torch.cat([k, *(turn_frames(k[:, :tokens], [frames]) for frames in moves)], dim=1)
    v = torch.cat([v, *(v[:, :tokens] for _ in moves)], dim=1)
    return VisibleKeys(k, v, seen)


def _own(memory: LayerMemory) -> KeyValueCache:
    assert isinstance(memory, KeyValueCache)  # Memory.check has refused another model's memory
    return memory
