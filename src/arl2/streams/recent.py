"""What a stream keeps besides its memory: the last latents, and light points that it can be rewound to.

Both have a fixed length, so a stream of a million blocks keeps what one of a hundred does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from arl2.attention.memory import Memory
from arl2.geometry import FrameRange

FULL_WINDOW_KEEPS = 21  # latent frames kept where no window says how many: the length that students are trained on


@dataclass(frozen=True)
class LatentBlock:
    """Latents of one block, and where it stood."""

    frames: FrameRange
    latents: Float[Tensor, "batch channels frames height width"]


@dataclass(frozen=True)
class PendingBlock:
    """Latents of a block to come, and whether it does not go on from the one before it."""

    latents: Float[Tensor, "batch channels frames height width"]
    cut: bool = False


@dataclass(frozen=True)
class Recent:
    """The last latents of a stream in whole blocks, and those of its sinks.

    From these the windows of softmax layers can be filled again, and the decoder be led up to the next block. Nothing
    is copied when a block is added: a point of the past shares its latents with the present.

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
        """Nothing yet, of a stream that sees ``window`` latent frames."""
        return cls(FULL_WINDOW_KEEPS if window is None else window, sink)

    def with_block(self, piece: LatentBlock) -> "Recent":
        """After one more block."""
        last = [*self.last, piece]
        while last[-1].frames.stop - last[0].frames.stop >= self.keep:
            last.pop(0)
        is_sink = piece.frames.start < self.start + self.sink
        return replace(self, last=tuple(last), sinks=(*self.sinks, piece) if is_sink else self.sinks)

    def cut(self) -> "Recent":
        """The last block alone, as the start of something else."""
        if not self.last:
            return self
        piece = self.last[-1]
        return replace(self, start=piece.frames.start, sinks=(piece,) if self.sink else (), last=(piece,))

    @property
    def sinks_apart(self) -> tuple[LatentBlock, ...]:
        """Sinks that are not among the latest blocks."""
        first = self.last[0].frames.start if self.last else 0
        return tuple(piece for piece in self.sinks if piece.frames.start < first)

    @property
    def holds_all(self) -> bool:
        """Whether everything in memory came from the latents kept here."""
        return not self.last or self.last[0].frames.start == self.start


@dataclass(frozen=True)
class Prompts:
    """Prompts as they were given, and what the text part made of them.

    Attributes:
        given: one prompt for the batch, one for each sample, or None if embeddings came.
        texts: embeddings of the prompts; then, under guidance, of the negative prompts.
    """

    given: str | tuple[str, ...] | None
    texts: tuple[Float[Tensor, "batch words width"], ...]

    def changed(self, given: str | Sequence[str], text: Float[Tensor, "batch words width"]) -> "Prompts":
        """Another prompt under the same negative one."""
        return Prompts(given if isinstance(given, str) else tuple(given), (text, *self.texts[1:]))


@dataclass(frozen=True)
class RewindPoint:
    """Where a stream stood right before a block.

    Attributes:
        index: number of the block.
        frames: position of the block.
        seeds: of the samples.
        prompts: in force at the block; a change that came with the block is in them.
        recent: latents of that time.
        waiting: blocks that were to be taken instead of generated ones.
        cut: what the block said of itself.
        states: of each memory, for a light point: copies of the recurrent states.
        memories: for an exact point: all of it, windows shared until they are written.
    """

    index: int
    frames: int
    seeds: tuple[int, ...]
    prompts: Prompts
    recent: Recent
    waiting: tuple[PendingBlock, ...]
    cut: bool
    states: tuple[dict[str, Tensor], ...] = ()
    memories: tuple[Memory, ...] = ()
