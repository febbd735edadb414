"""Base classes of an attention kind: ``AttentionSpec`` describes it to the package, ``SelfAttention`` computes it.

To add a kind, subclass both (and ``LayerMemory``) in one file and call :func:`arl2.attention.plan.register`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arl2.attention.cost import BlockSeen, HeadSize, MemoryBytes, PassFlops
from arl2.attention.layer_memory import LayerMemory, MemoryGeometry
from arl2.attention.layout import ClipLayout
from arl2.attention.projections import Projections
from arl2.attention.sequence_parallel import ALONE, SequenceParallel
from arl2.geometry import SinkPositions
from arl2.kernels.backends import ATTENTION
from arl2.kernels.rope import Rotation

Stage = Literal[1, 2]  # of a conversion: 1 align, 2 distill


class Access(Enum):
    """What a streaming pass over a block does to memory.

    ``READ``: a denoising pass; memory is left bit-identical.
    ``COMMIT``: the cache-update pass over the finished block; every layer attends to memory as it was, then writes it,
    once.
    """

    READ = "read"
    COMMIT = "commit"


class SelfAttention(nn.Module, ABC):
    """Self-attention over blocks, with memory (streaming) or over a whole clip at once (training, ``forward``).

    All inputs and outputs are tokens ``[B, T, d]`` in raster order (frame, row, column).

    Attributes:
        spec: of the kind, with this layer's options.
        shared: the projections that all kinds have; a conversion copies them from the softmax layer.
        splits_heads: whether a stream can be split over several ranks. ``stream`` and ``commit`` are then given this
            rank's tokens; they call ``parallel.to_heads`` and ``parallel.to_tokens`` around what attends to memory or
            writes it, ``allocate_memory`` takes ``parallel.own_heads`` of the heads, and the memory says its
            ``heads_axis``.
        parallel: this rank; alone unless the model's ``enable_parallelism`` says otherwise.
    """

    spec: "AttentionSpec"
    shared: Projections
    splits_heads: ClassVar[bool] = False
    parallel: SequenceParallel = ALONE

    @abstractmethod
    def stream(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory, access: Access
    ) -> Float[Tensor, "batch tokens width"]:
        """One block attends to itself and to memory as it is; on ``COMMIT`` it is then written to memory."""

    @abstractmethod
    def commit(self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, memory: LayerMemory) -> None:
        """Write a block to memory and compute nothing else (the last layer of a cache-update pass)."""

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch tokens width"], rotation: Rotation, layout: ClipLayout
    ) -> Float[Tensor, "batch tokens width"]:
        """All blocks of a clip in parallel; equal to streaming them."""

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

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialize what a conversion adds to a softmax layer; ``shared`` holds the pretrained weights."""


@dataclass(frozen=True)
class Part:
    """Parameters of a layer that train in a conversion.

    Attributes:
        label: name in the published code and the paper's tables.
        stage: first conversion stage in which it trains.
        endings: suffixes of its parameter names.
        decays: whether weight decay applies.
        hidden: whether its parameters are hidden-layer matrices, which Muon optimizes.
    """

    label: str
    stage: Stage
    endings: tuple[str, ...]
    decays: bool = True
    hidden: bool = False


def unchanged(tensor: Tensor) -> Tensor:
    """A tensor that both layouts store in one shape."""
    return tensor


class PublishedName(NamedTuple):
    """A tensor's name in a published layout beside ours, and how its shape changes on the way in and out."""

    original: str
    ours: str
    to_ours: Callable[[Tensor], Tensor] = unchanged
    to_original: Callable[[Tensor], Tensor] = unchanged


class AttentionSpec(ABC):
    """The self-attention of one layer: a frozen dataclass of its options, and what follows from them.

    Numbers of operations and bytes are those of one layer. Elementwise work and norms are not counted.

    Attributes:
        letter: in layer plans.
        name: for people.
        parts: trainable parameters of the self-attention, by stage; names are relative to it.
        lora_in_ffn: whether the feed-forward beside it has a LoRA when ``ffn_rank_layers`` is ``"hybrid"``.
        float32: parameter names that stay float32 whatever is computed in.
        kernels: operations it runs, each of which has backends to choose from (:mod:`arl2.kernels.backends`).
        published_names: its tensors in the published layout, apart from the projections that all kinds share and
            relative to the self-attention; None if that layout cannot hold it.
        recognised_by: our name of a tensor that only this kind has, from which the layer plan of a published file is
            inferred; None if it cannot be.
    """

    letter: ClassVar[str]
    name: ClassVar[str]
    parts: ClassVar[tuple[Part, ...]] = ()
    lora_in_ffn: ClassVar[bool] = False
    float32: ClassVar[tuple[str, ...]] = ()
    kernels: ClassVar[tuple[str, ...]] = (ATTENTION,)
    published_names: ClassVar[tuple[PublishedName, ...] | None] = None
    recognised_by: ClassVar[str | None] = None

    @property
    def starts_as_softmax(self) -> bool:
        """Whether a layer that was converted and not trained computes what the softmax layer did."""
        return False

    @classmethod
    @abstractmethod
    def of_config(cls, config: Mapping[str, Any]) -> "AttentionSpec":
        """The options that a transformer's configuration gives it; what is missing there has its default."""

    @classmethod
    def settings_of(cls, layers: Mapping[int, Mapping[str, Tensor]], width: int, where: str) -> dict[str, Any]:
        """Configuration inferred from the tensors of a published checkpoint.

        Args:
            layers: of every layer of the model, the self-attention's tensors under our names.
            width: of the model.
            where: the file, for messages.

        Raises:
            CheckpointError: tensors that contradict each other.
        """
        return {}

    @abstractmethod
    def build(self, size: HeadSize, eps: float) -> SelfAttention:
        """The module, with its start values: what a conversion adds to a softmax layer."""

    def seeing(self, window: int | None) -> "AttentionSpec":
        """This spec with another window; unchanged for kinds that have none."""
        return self

    def seeing_own_block(self) -> "AttentionSpec":
        """This spec with its window shrunk to the own block, for kinds with a state beside it that shall learn to carry
        the rest; unchanged for all others."""
        return self

    @abstractmethod
    def memory_bytes(self, size: HeadSize, *, batch: int, frame_tokens: int, element_size: int) -> MemoryBytes:
        """Of ``batch`` streams.

        Args:
            frame_tokens: tokens a latent frame.
            element_size: bytes of a number in the dtype that is computed in.
        """

    @abstractmethod
    def read_flops(self, size: HeadSize, block: MemoryGeometry, past_frames: int) -> PassFlops:
        """Of attending to the block and to memory, ``past_frames`` latent frames of which are in the window."""

    @abstractmethod
    def write_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        """What the cache-update pass of a block adds to reading: its memory is written, too."""

    @abstractmethod
    def write_alone_flops(self, size: HeadSize, block: MemoryGeometry) -> PassFlops:
        """Of writing memory without attending: the last layer of a cache-update pass."""

    def clip_flops(self, size: HeadSize, blocks: Sequence[BlockSeen]) -> PassFlops:
        """Of a training pass over a clip and its clean copy: the copy's blocks, but for the last, are written."""
        read = (self.read_flops(size, block, past).times(2) for block, past in blocks)
        written = (self.write_flops(size, block) for block, _ in blocks[:-1])
        return sum((*read, *written), PassFlops())

    @abstractmethod
    def pass_bytes(self, size: HeadSize, element_size: int) -> int:
        """Working memory of attending, for each token of a block: an estimate, without a score matrix."""

    @abstractmethod
    def kept_bytes(self, size: HeadSize, ffn_dim: int, element_size: int) -> float:
        """Estimated bytes per token that autograd saves for a layer in which only new parameters train."""

    def kept_scores(self, size: HeadSize, element_size: int) -> float:
        """Bytes that autograd saves for each operation of the clip's attention, where scores are not left to a fused
        kernel; counted where gradients reach queries and keys."""
        return 0.0

    @abstractmethod
    def kept_bytes_alone(self, size: HeadSize, element_size: int) -> float:
        """What autograd keeps for each token of the self-attention alone, given inputs without gradients (stage 1)."""
