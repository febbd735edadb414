"""What every kind of self-attention can do. The transformer knows no more than this."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.access import Access
from arl2.attention.layout import ClipLayout
from arl2.attention.memory import LayerMemory, MemoryGeometry
from arl2.attention.plan import SinkPositions
from arl2.kernels.rope import Rotation


class SelfAttention(nn.Module, ABC):
    """Self-attention over blocks, with memory (streaming) or over a whole clip at once (training).

    All inputs and outputs are tokens ``[B, T, d]`` in raster order (frame, row, column).
    """

    @abstractmethod
    def stream(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory, access: Access
    ) -> Float[Tensor, "batch tokens width"]:
        """One block attends to itself and to memory as it is; on ``COMMIT`` it is then written to memory."""

    @abstractmethod
    def commit(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory) -> None:
        """Write a block to memory and compute nothing else (the last layer of a clean pass)."""

    @abstractmethod
    def parallel(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, layout: ClipLayout
    ) -> Float[Tensor, "batch tokens width"]:
        """All blocks of a clip at once; equal to streaming them."""

    @abstractmethod
    def allocate_memory(
        self,
        geometry: MemoryGeometry,
        *,
        window: int | None,
        sink: int,
        sink_positions: SinkPositions,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> LayerMemory:
        """Empty memory for a new stream. Kinds whose memory is constant by design ignore window and sinks."""
