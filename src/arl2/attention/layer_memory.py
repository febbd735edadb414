"""What the memory of any layer can do, and the sizes that it is allocated for."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

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

    @property
    def block_tokens(self) -> int:
        """Tokens of a block, of all samples."""
        return self.batch * self.block_frames * self.frame_tokens


class LayerMemory(ABC):
    """Memory of one layer.

    Attributes:
        heads_axis: of the heads in every tensor of :meth:`held`, along which several ranks share them; None for memory
            that is never split (its kind does not say ``splits_heads``).
    """

    heads_axis: ClassVar[int | None] = None

    frames: int
    """Position of the next frame: how many were written since the stream began, unless it was made to begin later."""

    def prepare(self, frames: int) -> None:  # noqa: B027  # what never grows has nothing to prepare
        """Before a pass over a block of ``frames`` frames: make what room it needs.

        What is counted or allocated is so here and in :meth:`advance`, and a pass touches nothing but tensors:
        compilers and graphs record it once and for all.
        """

    def advance(self, frames: int) -> None:
        """After a cache-update pass: the block counts, and what the pass has left of it goes to its place."""
        self.frames += frames

    @property
    def is_blank(self) -> bool:
        """Whether layers skip the read of a state, since nothing was written to it. The host knows."""
        return False

    def is_steady(self) -> bool:
        """Whether every whole block from here on meets tensors of the same shapes at the same places."""
        return True

    @abstractmethod
    def held(self) -> dict[str, Tensor]:
        """The tensors that hold the past, without spare room, by name. Views: the next pass may change them."""

    def constant(self) -> dict[str, Tensor]:
        """Of :meth:`held`, what a light snapshot keeps: tensors of constant size that no few latents can bring back.

        Empty if committing the latents of the window fills this memory again.
        """
        return {}

    def restore_constant(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace what :meth:`constant` gives by tensors of the same names, shapes and dtypes."""
        for name, own in self.constant().items():
            own.copy_(tensors[name].detach())

    @property
    def has_window(self) -> bool:
        """Whether part of it is a window, which committing its latents fills again."""
        return not self.constant()

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the tensors do not tell, as JSON holds it."""

    @abstractmethod
    def expected(self, facts: object, frames: int) -> dict[str, TensorKind]:
        """The tensors that go with saved facts, which may come from an untrusted file.

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
    def fill_random(self, frames: int, generator: torch.Generator) -> None:
        """Hold standard normal numbers as if ``frames`` frames had been written; see ``Memory.fill_random``."""

    @abstractmethod
    def begin_at(self, frame: int, *, keep_sinks: bool) -> None:
        """Continue at ``frame`` with an empty window; see :meth:`arl2.attention.memory.Memory.begin_at`."""

    @property
    def states_lag(self) -> int:
        """Of the latest blocks, how many the state that is read does not know, because the window shows them."""
        return 0

    def take_back_states(self) -> None:  # noqa: B027  # without a lag there is nothing to take back
        """Let all states be the one that is read, so that the blocks it does not know can be committed again.

        One with a horizon that the next block renews a second time takes its own place, and loses nothing.
        """

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


class ConstantMemory(LayerMemory):
    """Tensors that are written in place, so their addresses never change; all zero is the empty memory.

    A kind names them and says how they turn when positions are counted from elsewhere.

    Args:
        geometry: that it is allocated for.
        tensors: by name, zero.
    """

    def __init__(self, geometry: MemoryGeometry, tensors: dict[str, Tensor]) -> None:
        self.frame_tokens = geometry.frame_tokens
        self.tensors = tensors
        self.frames = 0

    @abstractmethod
    def turned(self, name: str, tensor: Tensor, frames: int) -> Tensor:
        """A tensor as if everything in it stood ``frames`` frames later."""

    def held(self) -> dict[str, Tensor]:
        return dict(self.tensors)

    def constant(self) -> dict[str, Tensor]:
        return dict(self.tensors)

    def facts(self) -> dict[str, Any]:
        return {"kind": "state"}

    def expected(self, facts: object, frames: int) -> dict[str, TensorKind]:
        if facts != self.facts():
            raise MemoryMismatchError(
                f"This layer keeps {', '.join(self.tensors)} of constant size, but it was saved as {facts!r:.80}."
            )
        return {name: TensorKind(list(own.shape), own.dtype) for name, own in self.tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor], facts: Any, frames: int) -> None:
        for name, own in self.tensors.items():
            own.copy_(tensors[name].detach())
        self.frames = frames

    def fill_random(self, frames: int, generator: torch.Generator) -> None:
        for own in self.tensors.values():
            own.normal_(generator=generator)
        self.frames = frames

    def begin_at(self, frame: int, *, keep_sinks: bool) -> None:
        self.frames = frame

    def move_origin(self, frames: int) -> None:
        for name, own in self.tensors.items():
            own.copy_(self.turned(name, own, -frames))
        self.frames -= frames

    def clone(self) -> "ConstantMemory":
        twin = copy.copy(self)
        twin.tensors = {name: own.clone() for name, own in self.tensors.items()}
        return twin

    @property
    def nbytes(self) -> int:
        return sum(own.nbytes for own in self.tensors.values())

    @property
    def shared(self) -> int:
        return 0


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
