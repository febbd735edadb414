"""What a front gets of one stream, once for all its viewers, whichever worker runs it."""

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Literal

from arl2.errors import Arl2Error
from arl2.serving.cluster.peers import MovingError, WorkerLostError, Workers
from arl2.serving.live.feed import Feed
from arl2.serving.live.wire import (
    DrainingError,
    Ended,
    NoRoomError,
    StreamInfo,
    WatchItem,
)

logger = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between two attempts


class Subscription:
    """Follows a stream from worker to worker; begins when made, on the running event loop.

    A worker that continues the stream for one that died begins with the block that was cut off, whose first frames the
    viewers have; the feed passes those over.

    Args:
        workers: those of the cluster.
        stream: its name.
        after: the last block that its first viewer has shown, as in ``StreamHost.watch``.
        ring_bytes: of blocks that are kept for viewers.
        front: name of the front, by which workers know whether it is there.

    Attributes:
        feed: gives the viewers what comes.
        viewers: how many there are.
        started: done when the stream was reached; raises what its worker raised.
        gaps: seconds without a worker, each time that one was lost.
    """

    def __init__(self, workers: Workers, stream: str, after: int | None, *, ring_bytes: int, front: str) -> None:
        self.feed = Feed(most_bytes=ring_bytes)
        self.viewers = 0
        self.gaps: list[float] = []
        self._workers, self._stream, self._after, self._front = workers, stream, after, front
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = loop.create_future()
        self._following = loop.create_task(self._follow())

    @property
    def is_over(self) -> bool:
        return self._following.done()

    def end(self, reason: Literal["draining", "deleted"]) -> None:
        """Nothing follows for its viewers."""
        self._following.cancel()
        self.feed.put(Ended(reason))

    async def _follow(self) -> None:
        try:
            await self._keep()
            pause, lost = FIRST_PAUSE, None
            loop = asyncio.get_running_loop()
            while True:
                try:
                    batches = self._workers.follow(self._stream, "watch", self._after, self._front)
                    async with contextlib.aclosing(batches) as each:
                        async for batch in each:
                            if lost is not None:
                                self.gaps.append(loop.time() - lost)
                                logger.info("'%s' continues after %.2f s", self._stream, self.gaps[-1])
                            pause, lost = FIRST_PAUSE, None
                            if self._passed_on(batch):
                                return
                    raise MovingError("its worker has let go of it")
                except (WorkerLostError, DrainingError, NoRoomError) as error:
                    if isinstance(error, NoRoomError) and not self.started.done():
                        raise
                    logger.info("'%s' looks for a worker: %s", self._stream, error)
                    lost = loop.time() if lost is None else lost
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not self.started.done():
                self.started.set_exception(error)
                self.started.exception()  # known, even if the viewer has left
                return
            if not isinstance(error, Arl2Error):
                logger.exception("'%s' is followed no longer", self._stream)
            self.feed.put(Ended("failed", str(error)))

    async def _keep(self) -> None:
        """Put what the worker has kept into the feed, so that later viewers can begin there, too."""
        try:
            kept = await self._workers.call(self._stream, "recent")
        except WorkerLostError:
            return
        for head, frames in kept:
            for item in (head, *frames):
                self._take(item)

    def _passed_on(self, batch: list[WatchItem]) -> bool:
        """Give a batch to the viewers; True at the end of the stream."""
        for item in batch:
            # A worker also ends what it gives where the stream only moves to another one.
            if not (isinstance(item, Ended) and item.reason == "draining"):
                self._take(item)
        if not self.started.done():
            self.started.set_result(None)
        return any(isinstance(item, Ended) and item.reason != "draining" for item in batch)

    def _take(self, item: WatchItem) -> None:
        if isinstance(item, StreamInfo):
            # Its worker counts this front as one viewer.
            item = replace(item, viewers=max(0, item.viewers - 1) + self.viewers)
        self.feed.put(item)
        whole = self.feed.newest_whole
        if whole is None and self.feed.newest is not None:
            whole = self.feed.newest - 1  # the first block has begun only: the next worker begins with it again
        if whole is not None:
            self._after = whole if self._after is None else max(whole, self._after)
