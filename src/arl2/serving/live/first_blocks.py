"""Streams that begin alike share their first block: it is made once, and the others fork after it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from arl2.rollout.blocks import VideoBlock
from arl2.serving.live.turns import Turns
from arl2.streams.stream import Stream


@dataclass(eq=False)
class _First:
    """A stream before its first block, then after it; ``guard`` is held while the block is made."""

    stream: Stream
    guard: threading.Lock = field(default_factory=threading.Lock)
    block: VideoBlock | None = None
    error: Exception | None = None


class FirstBlocks:
    """Keeps a few streams right after their first block. Any thread may call.

    Args:
        turns: that the streams of the model take.
        most: kept; each takes the memory of a stream. What was not used longest goes first.
    """

    def __init__(self, turns: Turns, *, most: int) -> None:
        self._turns, self._most = turns, most
        self._guard = threading.Lock()
        self._kept: OrderedDict[Hashable, _First] = OrderedDict()
        self.made = 0

    def opening(self, key: Hashable, begin: Callable[[], Stream]) -> Callable[[], tuple[Stream, VideoBlock | None]]:
        """What gives a stream and its first block when it is called, which may take as long as a block.

        Args:
            key: of all that the block depends on.
            begin: a stream from the start, called at once unless there is one of this key; its errors are raised here.
        """
        with self._guard:
            first = self._kept.get(key)
            if first is not None:
                self._kept.move_to_end(key)
        if first is None:
            begun = _First(begin())
            with self._guard:
                first = self._kept.setdefault(key, begun)
                self._kept.move_to_end(key)
                while len(self._kept) > max(1, self._most):
                    self._kept.popitem(last=False)
            if first is not begun:
                begun.stream.close()
        return lambda: self._opened(first)

    def clear(self) -> None:
        """Let go of all; those that wait for one still get it."""
        with self._guard:
            self._kept.clear()

    def _opened(self, first: _First) -> tuple[Stream, VideoBlock]:
        with first.guard:
            if first.error is not None:
                raise first.error
            if first.block is None:
                try:
                    first.block = self._make(first.stream)
                except Exception as error:
                    first.error = error
                    self._forget(first)
                    raise
            return first.stream.fork(), first.block

    def _make(self, stream: Stream) -> VideoBlock:
        self.made += 1
        with torch.no_grad():
            with self._turns.denoise:
                latents = stream.latents_next()
            with self._turns.decode:
                return stream.decode(latents)

    def _forget(self, first: _First) -> None:
        with self._guard:
            for key in [key for key, kept in self._kept.items() if kept is first]:
                del self._kept[key]
