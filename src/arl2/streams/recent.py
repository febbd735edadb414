"""What a stream keeps besides its memory: the last latents, and the points it can be rewound to.

Both have a fixed length, so a stream of a million blocks keeps no more than one of a hundred.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from arl2.attention.memory import Memory
from arl2.geometry import FrameRange

FULL_WINDOW_KEEPS = 21  # latent frames kept without a window: the length that students are trained on


@dataclass(frozen=True)
class LatentBlock:
    """Latents of one block, its position, and whether they were given (conditioning frames) instead of generated."""

    frames: FrameRange
    latents: Float[Tensor, "batch channels frames height width"]
    known: bool = False


@dataclass(frozen=True)
class PendingBlock:
    """Latents of a conditioning block to come, and whether it does not continue the block before it."""

    latents: Float[Tensor, "batch channels frames height width"]
    cut: bool = False


def pending_blocks(latents: Tensor, sizes: Sequence[int], *, cut: bool = False) -> tuple[PendingBlock, ...]:
    """Blocks of latents, each with storage of its own, so that one can be freed without the others."""
    split = latents.split(list(sizes), dim=2)
    return tuple(PendingBlock(block.clone(), cut and i == 0) for i, block in enumerate(split))


@dataclass(frozen=True)
class Recent:
    """The last latents of a stream in whole blocks, and those of its sinks.

    The windows of softmax layers and the decoder can be warmed up from these. Nothing is copied when a block is added:
    rewind points share their latents with the present.

    Attributes:
        keep: latent frames to keep at least; the first kept block may begin earlier.
        sink: first frames that the window never evicts.
        start: position of the first block in memory: 0, or where the stream was cut.
        sinks: blocks with the sinks.
        last: the latest blocks.
    """

    keep: int
    sink: int
    start: int = 0
    sinks: tuple[LatentBlock, ...] = ()
    last: tuple[LatentBlock, ...] = ()

    @classmethod
    def of_window(cls, window: int | None, sink: int) -> "Recent":
        """Empty, for a stream with this window."""
        return cls(FULL_WINDOW_KEEPS if window is None else window, sink)

    def with_block(self, block: LatentBlock) -> "Recent":
        """After one more block."""
        last = [*self.last, block]
        while last[-1].frames.stop - last[0].frames.stop >= self.keep:
            last.pop(0)
        is_sink = block.frames.start < self.start + self.sink
        return replace(self, last=tuple(last), sinks=(*self.sinks, block) if is_sink else self.sinks)

    def cut(self) -> "Recent":
        """The last block alone, as a new start."""
        if not self.last:
            return self
        block = self.last[-1]
        return replace(self, start=block.frames.start, sinks=(block,) if self.sink else (), last=(block,))

    @property
    def sinks_apart(self) -> tuple[LatentBlock, ...]:
        """Sinks that are not among the latest blocks."""
        first = self.last[0].frames.start if self.last else 0
        return tuple(block for block in self.sinks if block.frames.start < first)

    @property
    def holds_all(self) -> bool:
        """Whether all of memory was committed from the latents kept here."""
        return not self.last or self.last[0].frames.start == self.start


@dataclass(frozen=True)
class Prompts:
    """Prompts as they were given, and their embeddings.

    Attributes:
        given: one prompt for the batch, one for each sample, or None if embeddings were given.
        texts: embeddings of the prompts; then, under guidance, of the negative prompts.
    """

    given: str | tuple[str, ...] | None
    texts: tuple[Float[Tensor, "batch _ width"], ...]

    def changed(self, given: str | Sequence[str], text: Float[Tensor, "batch words width"]) -> "Prompts":
        """Another prompt with the same negative one."""
        return Prompts(given if isinstance(given, str) else tuple(given), (text, *self.texts[1:]))


@dataclass(frozen=True)
class RewindPoint:
    """The state of a stream right before a block.

    Attributes:
        index: number of the block.
        frames: position of the block.
        seeds: of the samples.
        prompts: of the block, a change that took effect with it included.
        recent: latents of that time.
        pending: conditioning blocks that were to come.
        cut: whether the block does not continue the one before it.
        states: of each memory, for a light point: copies of the recurrent states.
        memories: for an exact point; windows are shared until they are written.
    """

    index: int
    frames: int
    seeds: tuple[int, ...]
    prompts: Prompts
    recent: Recent
    pending: tuple[PendingBlock, ...]
    cut: bool
    states: tuple[dict[str, Tensor], ...] = ()
    memories: tuple[Memory, ...] = ()
