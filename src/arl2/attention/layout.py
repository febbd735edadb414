"""The layout of a whole clip in a parallel (training) forward, and what its blocks may see."""

import functools
from dataclasses import dataclass

from arl2.geometry import FrameRange
from arl2.kernels.attention.ranges import QueryRange, Ranges, merge


@dataclass(frozen=True)
class ClipLayout:
    """Blocks of a clip laid side by side in the token axis.

    Attributes:
        blocks: frames of each block, in order.
        frame_tokens: tokens a frame.
        teacher_forcing: the axis holds two copies of the clip, ``[clean | noisy]``; a noisy block sees the clean copies
            of earlier blocks and itself. Otherwise one copy, in which a block sees earlier blocks and itself.
    """

    blocks: tuple[FrameRange, ...]
    frame_tokens: int
    teacher_forcing: bool

    @property
    def frames(self) -> int:
        """Frames of the clip (of one copy)."""
        return self.blocks[-1].stop

    @property
    def clip_tokens(self) -> int:
        """Tokens of one copy."""
        return self.frames * self.frame_tokens

    def copies(self) -> tuple[int, ...]:
        """Token offset of each copy; the first one is what later blocks remember."""
        return (0, self.clip_tokens) if self.teacher_forcing else (0,)

    def span(self, block: FrameRange, offset: int = 0) -> tuple[int, int]:
        """Tokens of a block in the copy that begins at ``offset``."""
        return offset + block.start * self.frame_tokens, offset + block.stop * self.frame_tokens

    def visible(self, window: int | None, sink: int) -> Ranges:
        """What a softmax layer sees: memory (first copy) inside the window, and the block itself."""
        return _visible(self, window, sink, ())

    def visible_with_moved_sinks(self, window: int | None, sink: int) -> tuple[Ranges, tuple[int, ...]]:
        """The same for sinks that move with the window (``sink_positions="relative"``).

        Every block for which they move sees a copy of the sinks of its own, and the copies are laid behind the clip's
        tokens in the axis of the keys.

        Returns:
            What is seen, and by how many frames the sinks of each copy are moved: none while the window reaches back
            to the first frame.
        """
        moves = tuple(block.stop - window for block in self.blocks if block.stop > window) if window and sink else ()
        return _visible(self, window, sink, moves), moves

    def own_block(self) -> Ranges:
        """What the softmax part of a hybrid layer sees: the block itself."""
        return _own_block(self)


@functools.lru_cache(maxsize=64)
def _visible(layout: ClipLayout, window: int | None, sink: int, moves: tuple[int, ...]) -> Ranges:
    end, sink_tokens = len(layout.copies()) * layout.clip_tokens, sink * layout.frame_tokens
    ranges = []
    for offset in layout.copies():
        for block in layout.blocks:
            own = layout.span(block, offset)
            oldest = 0 if window is None else max(0, block.stop - (window - sink))
            sinks = layout.span(FrameRange(0, min(sink, block.start)))
            if window is not None and block.stop - window in moves:
                start = end + moves.index(block.stop - window) * sink_tokens
                sinks = (start, start + sink_tokens)
            recent = FrameRange(min(oldest, block.start), block.start)
            ranges.append(QueryRange(*own, merge([sinks, layout.span(recent), own])))
    return tuple(ranges)


@functools.lru_cache(maxsize=64)
def _own_block(layout: ClipLayout) -> Ranges:
    spans = [layout.span(block, offset) for offset in layout.copies() for block in layout.blocks]
    return tuple(QueryRange(*span, (span,)) for span in spans)
