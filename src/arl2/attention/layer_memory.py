"""What the memory of any layer can do, and the sizes that it is allocated for."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arl2.errors import MemoryMismatchError

POSITION_LIMIT = 2**53  # frames: beyond it float64 skips whole numbers, and angles with them


class TensorKind(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: list[int]
    dtype: torch.dtype


@dataclass(frozen=True)
class MemoryGeometry:
    """Sizes that a memory is allocated for.

    Attributes:
        batch: samples.
        rows, columns: token grid of a frame.
        block_frames: frames of a block (the first block of a stream may be shorter).
    """

    batch: int
    rows: int
    columns: int
    block_frames: int

    @property
    def frame_tokens(self) -> int:
        """Tokens a frame."""
        return self.rows * self.columns


class LayerMemory(ABC):
    """Memory of one layer."""

    frames: int
    """Position of the next frame: how many were written since the stream began, unless it was made to begin later."""

    @abstractmethod
    def held(self) -> dict[str, Tensor]:
        """The tensors that hold the past, without spare room, by name. Views: the next pass may change them."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the tensors do not tell, as JSON holds it."""

    @abstractmethod
    def expected(self, facts: object, frames: int) -> dict[str, TensorKind]:
        """The tensors that go with facts which were saved; they may come from a file that nobody vouches for.

        Args:
            facts: as :meth:`facts` gives them, or anything else.
            frames: position of the next frame, checked by the caller.

        Raises:
            MemoryMismatchError: facts of another kind of memory, or that make no sense; the message names what differs.
        """

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], facts: Any, frames: int) -> None:
        """Remember exactly what another memory held, once all was found as :meth:`expected`."""

    @abstractmethod
    def begin_at(self, frame: int, *, keep_sinks: bool) -> None:
        """Go on at ``frame`` with an empty window; see :meth:`arl2.attention.memory.Memory.begin_at`."""

    @abstractmethod
    def move_origin(self, frames: int) -> None:
        """Count positions from ``frames`` frames later; what is kept rotated turns back by as much."""

    @abstractmethod
    def clone(self) -> "LayerMemory":
        """An independent copy."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes allocated, spare room and what is shared with clones included."""

    @property
    @abstractmethod
    def shared(self) -> int:
        """Of ``nbytes``, those that a living clone uses, too."""


def check_tensors(expected: Mapping[str, TensorKind], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not exactly those expected.

    Raises:
        MemoryMismatchError: a tensor that is missing or too many, of another shape or of another dtype.
    """
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        differs = f"lacks {', '.join(missing[:3])}" if missing else f"has {', '.join(extra[:3])} too many"
        raise MemoryMismatchError(
            f"What should be restored {differs}; allocate memory of the plan and sinks that it was saved from."
        )
    for name, (shape, dtype) in expected.items():
        given = tensors[name]
        if list(given.shape) != shape or given.dtype != dtype:
            raise MemoryMismatchError(
                f"{name} is {list(given.shape)} in {given.dtype}, but this memory takes {shape} in {dtype}; "
                "allocate memory of the model, sizes and dtype that it was saved from."
            )
