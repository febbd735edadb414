"""The softmax layer: a block attends to itself and to the cached keys and values of the past."""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.attention.access import Access
from arl2.attention.base import SelfAttention
from arl2.attention.layout import ClipLayout
from arl2.attention.memory import KeyValueCache, LayerMemory, MemoryGeometry
from arl2.attention.plan import SinkPositions, SoftmaxSpec
from arl2.attention.projections import Projections
from arl2.kernels.attention import range_attention, softmax_attention
from arl2.kernels.rope import Rotation, turn_frames


class SoftmaxAttention(SelfAttention):
    """Block-causal softmax attention (spec: the baseline, and the layers that are not converted)."""

    def __init__(self, width: int, heads: int, eps: float, spec: SoftmaxSpec) -> None:
        super().__init__()
        self.shared = Projections(width, heads, eps)
        self.spec = spec

    def stream(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory, access: Access
    ) -> Float[Tensor, "batch tokens width"]:
        cache = _own(memory)
        q, k, v = self._rotated(x, rotation)
        seen_k, seen_v = cache.with_block(k, v)
        out = softmax_attention(q=q, k=seen_k, v=seen_v)
        if access is Access.COMMIT:
            cache.write(k, v, x.shape[1] // cache.geometry.frame_tokens)
        return self.shared.merge(out)

    def commit(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory) -> None:
        cache = _own(memory)
        k = rotation(self.shared.split(self.shared.norm_k(self.shared.to_k(x))))
        v = self.shared.split(self.shared.to_v(x))
        cache.write(k, v, x.shape[1] // cache.geometry.frame_tokens)

    def parallel(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, layout: ClipLayout
    ) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self._rotated(x, rotation)
        window, sink = self.spec.window, self.spec.sink
        if self.spec.sink_positions == "absolute":
            return self.shared.merge(range_attention(q=q, k=k, v=v, ranges=layout.visible(window, sink)))
        seen, moves = layout.visible_with_moved_sinks(window, sink)
        tokens = sink * layout.frame_tokens
        k = torch.cat([k, *(turn_frames(k[:, :tokens], [frames]) for frames in moves)], dim=1)
        v = torch.cat([v, *(v[:, :tokens] for _ in moves)], dim=1)
        return self.shared.merge(range_attention(q=q, k=k, v=v, ranges=seen))

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
            heads,
            width // heads,
            window=window,
            sink=sink,
            sink_positions=sink_positions,
            dtype=dtype,
            device=device,
        )

    def _rotated(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.shared.attention_inputs(self.shared.project(x))
        return rotation(q), rotation(k), v


def _own(memory: LayerMemory) -> KeyValueCache:
    assert isinstance(memory, KeyValueCache)  # Memory.check has refused another model's memory
    return memory
