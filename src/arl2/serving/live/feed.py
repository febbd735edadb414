"""One stream's encoded blocks on their way to all of its viewers: the last ones are kept, each viewer has its place.

Nobody waits for a slow viewer: what it has not taken stays until newer blocks need the room, and it continues at the
oldest block that is still there. Everything here belongs to one event loop; other threads use
``loop.call_soon_threadsafe(feed.put, item)``.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from arl2.serving.live.wire import BlockHead, EncodedFrame, Ended, Receipt, StreamInfo, WatchItem

RING_BYTES = 32_000_000
_MOST_TOLD = 256  # receipts that wait for one viewer


@dataclass(eq=False)
class _Kept:
    """A block, as far as it has come."""

    head: BlockHead
    frames: list[EncodedFrame] = field(default_factory=list)
    size: int = 0

    @property
    def whole(self) -> bool:
        return len(self.frames) == self.head.frames


@dataclass(eq=False)
class _Viewer:
    """Where one viewer is: ``wanted`` is the next block, ``begun`` the one it gets, with ``sent`` frames of it."""

    wanted: int
    counts: bool  # whether blocks that it does not get are told
    begun: _Kept | None = None
    sent: int = 0
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    receipts: deque[Receipt] = field(default_factory=lambda: deque(maxlen=_MOST_TOLD))
    info: StreamInfo | None = None


class Feed:
    """Keeps the last blocks and hands them to any number of viewers.

    Args:
        most_bytes: of encoded frames that are kept; the newest block is kept in any case.
    """

    def __init__(self, *, most_bytes: int = RING_BYTES) -> None:
        self._most = most_bytes
        self._blocks: deque[_Kept] = deque()
        self._viewers: set[_Viewer] = set()
        self._ended: Ended | None = None
        self._bytes = self._put_bytes = 0

    @property
    def viewers(self) -> int:
        """Watching now."""
        return len(self._viewers)

    @property
    def newest(self) -> int | None:
        """Number of the newest block; it may have begun only."""
        return self._blocks[-1].head.block if self._blocks else None

    @property
    def newest_whole(self) -> int | None:
        """Number of the newest block that is whole."""
        return next((one.head.block for one in reversed(self._blocks) if one.whole), None)

    @property
    def kept_bytes(self) -> int:
        """Of the frames that are kept."""
        return self._bytes

    @property
    def put_bytes(self) -> int:
        """Of all frames so far."""
        return self._put_bytes

    def put(self, item: WatchItem) -> None:
        """The next thing for all viewers: a block's head, one of its frames, or something to tell between them.

        What is here already is passed over, so that a source may be asked again from a block's start on: a head of a
        block that has begun, and frames that came before.
        """
        if isinstance(item, BlockHead):
            if self.newest is None or item.block > self.newest:
                self._blocks.append(_Kept(item))
                self._make_room()
        elif isinstance(item, EncodedFrame):
            self._add(item)
        elif isinstance(item, Ended):
            self._ended = item
        else:
            for viewer in self._viewers:
                if isinstance(item, StreamInfo):
                    viewer.info = item
                else:
                    viewer.receipts.append(item)
        for viewer in self._viewers:
            viewer.woken.set()

    def whole_blocks(self) -> list[tuple[BlockHead, list[EncodedFrame]]]:
        """All that are kept and whole, oldest first."""
        return [(one.head, list(one.frames)) for one in self._blocks if one.whole]

    async def watch(self, after: int | None = None) -> AsyncGenerator[WatchItem, None]:
        """For one viewer, from now until the end, which comes last: ``Ended``.

        Args:
            after: the last block that it has shown; -1: all that are kept; None: from the start of the newest one on.
        """
        newest = self.newest
        wanted = after + 1 if after is not None else 0 if newest is None else newest
        viewer = _Viewer(wanted, counts=after is not None and after >= 0)
        self._viewers.add(viewer)
        try:
            while True:
                if (item := self._next(viewer)) is not None:
                    yield item
                elif self._ended is not None:
                    yield self._ended
                    return
                else:
                    viewer.woken.clear()
                    await viewer.woken.wait()
        finally:
            self._viewers.discard(viewer)

    def _next(self, viewer: _Viewer) -> WatchItem | None:
        if viewer.receipts:
            return viewer.receipts.popleft()
        if viewer.info is not None:
            info, viewer.info = viewer.info, None
            return info
        if viewer.begun is not None:
            # A viewer ends the block that it has begun, even if it is no longer kept for others.
            if viewer.sent < len(viewer.begun.frames):
                viewer.sent += 1
                return viewer.begun.frames[viewer.sent - 1]
            if not viewer.begun.whole and viewer.begun is self._blocks[-1]:
                return None
            viewer.begun = None
        kept = self._from(viewer.wanted)
        if kept is None:
            return None
        skipped = kept.head.block - viewer.wanted if viewer.counts else 0
        viewer.begun, viewer.sent = kept, 0
        viewer.wanted, viewer.counts = kept.head.block + 1, True
        return replace(kept.head, skipped=skipped)

    def _from(self, number: int) -> _Kept | None:
        found = None
        for one in reversed(self._blocks):
            if one.head.block < number:
                break
            found = one
        return found

    def _add(self, frame: EncodedFrame) -> None:
        block = self._blocks[-1] if self._blocks else None
        if block is None or block.head.block != frame.block or frame.frame != block.head.frame + len(block.frames):
            return
        block.frames.append(frame)
        block.size += len(frame.data)
        self._bytes += len(frame.data)
        self._put_bytes += len(frame.data)
        self._make_room()

    def _make_room(self) -> None:
        while self._bytes > self._most and len(self._blocks) > 1:
            self._bytes -= self._blocks.popleft().size
