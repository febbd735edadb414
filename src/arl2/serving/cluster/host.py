"""``ClusterHost``: a host whose streams run in the workers of a cluster."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from arl2.serving.cluster.peers import WorkerLostError, Workers
from arl2.serving.cluster.subscription import FIRST_PAUSE, LONGEST_PAUSE, Subscription
from arl2.serving.live.feed import RING_BYTES
from arl2.serving.live.wire import (
    BlockHead,
    Command,
    DrainingError,
    EncodedFrame,
    NoRoomError,
    Receipt,
    StreamInfo,
    StreamRequest,
    WatchItem,
)

if TYPE_CHECKING:
    from arl2.streams.state import SnapshotKind

logger = logging.getLogger(__name__)
_DRAWS = 4  # names that are drawn for a stream, as long as their workers have no room
_BUSIEST = ("running", "paused", "ended", "failed", "asleep")


class ClusterHost:
    """Passes on what it is asked to the worker of the stream, and follows each watched stream once for all viewers.

    A worker that is lost is no error: the same is asked again, and another worker answers.

    Args:
        workers: those of the cluster.
        name: of this front, by which workers know whether it is there.
        ring_bytes: of blocks that are kept for the viewers of one stream.
        patience: seconds to look for a worker before a request is refused.
        linger: seconds that a stream is followed after its last viewer has left.
    """

    def __init__(
        self,
        workers: Workers,
        name: str,
        *,
        ring_bytes: int = RING_BYTES,
        patience: float = 60.0,
        linger: float = 2.0,
    ) -> None:
        self._name = name
        self._workers, self._ring_bytes, self._patience, self._linger = workers, ring_bytes, patience, linger
        self._followed: dict[str, Subscription] = {}
        self._draining = False

    async def create(self, request: StreamRequest) -> StreamInfo:
        return await self._begin("create", request)

    async def resume(self, snapshot: bytes, *, prompt: str | None = None, name: str = "") -> StreamInfo:
        return await self._begin("resume", snapshot, prompt, name)

    async def streams(self) -> list[StreamInfo]:
        """One worker lists those of the store, and each its own as they are now."""
        listed, running = await asyncio.gather(self._stored(), self._workers.ask_all("running"))
        found: dict[str, StreamInfo] = {}
        for one in [one for some in (listed, *running) for one in some]:
            known = found.get(one.id)
            if known is None or (_BUSIEST.index(one.state), -one.block) < (_BUSIEST.index(known.state), -known.block):
                found[one.id] = one
        return sorted((self._counted(one) for one in found.values()), key=lambda one: (one.created, one.id))

    async def info(self, stream: str) -> StreamInfo:
        return self._counted(await self._call(stream, "info"))

    async def delete(self, stream: str) -> None:
        await self._call(stream, "delete")
        if (followed := self._followed.pop(stream, None)) is not None:
            followed.end("deleted")

    async def give(self, stream: str, command: Command) -> Receipt:
        # So that a command that was kept by a worker which then died is found again, and not given twice.
        command = replace(command, nonce=secrets.token_hex(8))
        followed = self._followed.get(stream)
        since = 0 if followed is None else followed.feed.newest_whole or 0
        return await self._call(stream, "give", command, again=(since,))

    async def snapshot(self, stream: str, kind: "SnapshotKind" = "exact", block: int | None = None) -> bytes:
        return await self._call(stream, "snapshot", kind, block)

    async def watch(self, stream: str, *, after: int | None = None) -> AsyncIterator[WatchItem]:
        followed = self._followed.get(stream)
        if followed is None or followed.is_over:
            self._refuse_if_draining()
            followed = Subscription(self._workers, stream, after, ring_bytes=self._ring_bytes, front=self._name)
            self._followed[stream] = followed
        followed.viewers += 1
        try:
            await asyncio.shield(followed.started)
            async with contextlib.aclosing(followed.feed.watch(after)) as items:
                async for item in items:
                    yield item
        finally:
            followed.viewers -= 1
            if not followed.viewers:
                asyncio.get_running_loop().call_later(self._linger, self._leave, stream, followed)

    async def recent(self, stream: str) -> list[tuple[BlockHead, list[EncodedFrame]]]:
        return await self._call(stream, "recent")

    async def ready(self) -> bool:
        return not self._draining and any(await self._workers.ask_all("ready"))

    async def drain(self) -> None:
        """The viewers of this front are ended, and come back to another one; the streams run on in their workers."""
        self._draining = True
        for followed in self._followed.values():
            followed.end("draining")
        self._followed.clear()

    async def close(self) -> None:
        await self.drain()

    async def _begin(self, method: str, *given: Any) -> StreamInfo:
        """Begin a stream under a name drawn here: the name decides on its worker."""
        self._refuse_if_draining()
        refused: NoRoomError | None = None
        for _ in range(_DRAWS):
            stream = secrets.token_hex(5)
            try:
                return await self._call(stream, method, *given, again=(True,))
            except NoRoomError as error:
                refused = error
        assert refused is not None
        raise refused

    async def _call(self, stream: str, method: str, *given: Any, again: tuple[Any, ...] = ()) -> Any:
        """Call the worker of a stream, and if it is lost, the next, which is also told ``again``."""
        pause = FIRST_PAUSE
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    try:
                        return await self._workers.call(stream, method, *given)
                    except (WorkerLostError, DrainingError):
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, LONGEST_PAUSE)
                        given, again = (*given, *again), ()
        except TimeoutError:
            raise NoRoomError(
                f"No worker has answered for {self._patience:.0f} seconds; ask again, or see 'serve status'."
            ) from None

    async def _stored(self) -> list[StreamInfo]:
        for _ in range(_DRAWS):  # each name decides on another worker, perhaps
            try:
                listed: list[StreamInfo] = await self._workers.call(secrets.token_hex(5), "streams")
                return listed
            except WorkerLostError as error:
                logger.warning("streams that sleep are missing in a list, or asked for again: %s", error)
        return []

    def _counted(self, info: StreamInfo) -> StreamInfo:
        """With the viewers of this front, whom the worker counts as one."""
        followed = self._followed.get(info.id)
        if followed is None or followed.is_over:
            return info
        return replace(info, viewers=max(0, info.viewers - 1) + followed.viewers)

    def _refuse_if_draining(self) -> None:
        if self._draining:
            raise DrainingError("The server is about to end; ask again in a moment.")

    def _leave(self, stream: str, followed: Subscription) -> None:
        if not followed.viewers and self._followed.get(stream) is followed:
            del self._followed[stream]
            followed.end("draining")
