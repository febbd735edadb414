"""A worker of a cluster: one warm model, and the streams that the router gives it."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from arl2.errors import Arl2Error
from arl2.serving.cluster.owners import Owners
from arl2.serving.cluster.peers import MovingError, WorkerLostError, Workers
from arl2.serving.live.journal import JournalEntry
from arl2.serving.live.wire import (
    Command,
    Ended,
    Receipt,
    SharedHost,
    StreamInfo,
    StreamRequest,
    UnknownStreamError,
    WatchItem,
)

if TYPE_CHECKING:
    from arl2.streams.state import SnapshotKind

logger = logging.getLogger(__name__)
_WAIT_FOR_OWNER = 20.0  # seconds for another worker to finish its block and save it


@dataclass
class _Place:
    """What a worker knows of a stream that it runs, or is about to."""

    held: bool = False
    claiming: bool = False
    yielded: bool = False
    moving: bool = False
    users: int = 0
    confirmed: frozenset[str] = frozenset()  # the set of workers for which the router has named this one
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class StreamWorker:
    """Runs streams that it owns, and lets go of those that the router gives to others.

    Args:
        host: runs them in this process.
        owners: the notes of who runs what.
        workers: all workers, this one too.
        name: of this one.
        journal: the commands of a stream from a block on, as the store has them.
        lives: whether a front of that name is there.
        look_every: seconds between two looks at who the router names.
    """

    def __init__(
        self,
        host: SharedHost,
        owners: Owners,
        workers: Workers,
        name: str,
        *,
        journal: Callable[[str, int], Sequence[JournalEntry]],
        lives: Callable[[str], bool],
        look_every: float = 1.0,
    ) -> None:
        self.name, self.host, self._journal, self._lives = name, host, journal, lives
        self._owners, self._workers, self._look_every = owners, workers, look_every
        self._places: defaultdict[str, _Place] = defaultdict(_Place)
        self._watches: dict[asyncio.Queue[WatchItem | BaseException | None], str] = {}  # with their fronts
        self._seen = self._leaving = False
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, on the running event loop."""
        self._looking = asyncio.get_running_loop().create_task(self._look_often())

    async def close(self) -> None:
        """Let go of every stream, and end."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        await self.leave()
        await self.host.drain()
        await self.host.close()

    async def create(self, stream: str, request: StreamRequest, again: bool = False) -> StreamInfo:
        """Begin a stream; ``again``: a worker that was asked before died, perhaps after it had begun it."""
        async with self._using(stream, new=True):
            if again and (there := await self._there(stream)) is not None:
                return there
            return await self.host.create(request, stream=stream)

    async def resume(
        self, stream: str, snapshot: bytes, prompt: str | None, name: str, again: bool = False
    ) -> StreamInfo:
        """Begin a stream from a snapshot; ``again`` as for ``create``."""
        async with self._using(stream, new=True):
            if again and (there := await self._there(stream)) is not None:
                return there
            return await self.host.resume(snapshot, prompt=prompt, name=name, stream=stream)

    async def info(self, stream: str) -> StreamInfo:
        return await self.host.info(stream)

    async def recent(self, stream: str) -> list:
        return await self.host.recent(stream)

    async def streams(self, stream: str = "") -> list[StreamInfo]:
        """Of the store; those that other workers run as they were kept last."""
        return await self.host.streams()

    async def running(self) -> list[StreamInfo]:
        return self.host.running()

    async def ready(self) -> bool:
        return not self._leaving and await self.host.ready()

    async def delete(self, stream: str) -> None:
        async with self._using(stream):
            await self.host.delete(stream)
        await self._release(stream)

    async def give(self, stream: str, command: Command, since: int | None = None) -> Receipt:
        """Give a command.

        Args:
            stream: its name.
            command: what to do.
            since: a worker that was asked before died, perhaps after it had kept the command: it is looked for among
                those at this block or later, and not given again.
        """
        async with self._using(stream):
            if since is not None and (given := await self._given(stream, command, since)) is not None:
                return given
            receipt = await self.host.give(stream, command)
            if receipt.fork is not None:
                await self._adopt(receipt.fork)
            return receipt

    async def snapshot(self, stream: str, kind: "SnapshotKind", block: int | None) -> bytes:
        async with self._using(stream):
            return await self.host.snapshot(stream, kind, block)

    async def watch(self, stream: str, after: int | None, front: str) -> AsyncIterator[list[WatchItem]]:
        """What a front gets for its viewers, as many items at once as there are, until "draining" where it moves."""
        watched = self.host.watch(stream, after=after)
        items: asyncio.Queue[WatchItem | BaseException | None] = asyncio.Queue()
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._using(stream))
            pumping = asyncio.get_running_loop().create_task(_pump(watched, items))
            self._watches[items] = front
            try:
                # The stream wakes for the first item; until then nobody may let go of it.
                batch = [await items.get()]
                await held.aclose()
                while True:
                    while not items.empty():
                        batch.append(items.get_nowait())
                    ready = [item for item in batch if item is not None and not isinstance(item, BaseException)]
                    over = len(ready) < len(batch)
                    if ready:
                        yield ready
                    for item in batch:
                        if isinstance(item, BaseException):
                            raise item
                    if over:
                        return
                    batch = [await items.get()]
            finally:
                del self._watches[items]
                pumping.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await pumping

    async def let_go(self, stream: str, by: str) -> bool:
        """Another worker is to run it: finish the block, save it and forget it.

        Returns: False where this worker is just about to run it, too, and comes first by its name.
        """
        if by == self.name:
            return True
        place = self._places[stream]
        if place.claiming:
            if self.name < by:
                return False
            place.yielded = True
            return True
        await self._release(stream)
        return True

    def share(self) -> float:
        """Of real time that the streams of this worker take: what the number of workers is decided by."""
        return sum(one.figures.share for one in self.host.running() if one.state == "running")

    async def leave(self) -> None:
        """Let go of every stream, and take no other."""
        self._leaving = True
        await asyncio.gather(*(self._release(stream) for stream, place in list(self._places.items()) if place.held))

    async def look(self) -> None:
        """Let go of what the router gives to others, after another worker has come or gone or when this one is to end;
        and of what fronts watched that are dead.
        """
        for front in set(self._watches.values()):
            if not await asyncio.to_thread(self._lives, front):
                for items in [items for items, by in self._watches.items() if by == front]:
                    items.put_nowait(None)
        names = frozenset(await self._workers.ask_all("who"))
        if self.name not in names:
            if self._seen and not self._leaving:
                logger.info("%s is to end: its streams move", self.name)
                await self.leave()
            return
        self._seen = True
        for stream, place in list(self._places.items()):
            # Asked for each: streams begin while the router is asked about others.
            if place.held and not place.users and all(one.id != stream for one in self.host.running()):
                await self._release(stream)  # it sleeps, or is over
            elif place.held and place.confirmed != names:
                # Once more before a stream moves: a worker that is slow to answer is passed over by the router.
                for _ in range(2):
                    if await self._workers.call(stream, "who") == self.name:
                        place.confirmed = names
                        break
                else:
                    await self._release(stream)
        self._forget()

    async def who(self, stream: str = "") -> str:
        """Its name: whoever asks learns which worker the router names for a stream."""
        return self.name

    async def _look_often(self) -> None:
        while True:
            await asyncio.sleep(self._look_every)
            try:
                await self.look()
            except WorkerLostError as error:
                logger.info("%s looks again: %s", self.name, error)
            except Exception:  # looking goes on, whatever a look met
                logger.exception("%s could not look at who runs which stream", self.name)

    @contextlib.asynccontextmanager
    async def _using(self, stream: str, *, new: bool = False) -> AsyncIterator[None]:
        """Run the stream, and nobody else; it is not let go of meanwhile."""
        if not new:
            await self.host.info(stream)  # there is one of that name
        place = self._places[stream]
        if place.moving:  # the router names another worker
            raise MovingError(f"'{stream}' moves.")
        async with place.changing:
            if not place.held:
                await self._claim(stream, place)
            place.users += 1
            place.idle.clear()
        try:
            yield
        finally:
            place.users -= 1
            if not place.users:
                place.idle.set()

    async def _claim(self, stream: str, place: _Place) -> None:
        if self._leaving:
            raise MovingError(f"'{self.name}' is to end.")
        place.claiming, place.yielded = True, False
        try:
            if not all(await self._workers.ask_all("let_go", stream, self.name, timeout=_WAIT_FOR_OWNER)):
                raise MovingError(f"Another worker begins to run '{stream}'.")
            await self._wait_for_owner(stream)
            if place.yielded:
                raise MovingError(f"Another worker begins to run '{stream}'.")
            await self._owners.take(stream, self.name)
            place.held = True
        finally:
            place.claiming = False

    async def _adopt(self, stream: str) -> None:
        """A fork runs here already; if the router gives it to another worker, it moves at the next look."""
        place = self._places[stream]
        async with place.changing:
            if not place.held:
                await self._owners.take(stream, self.name)
                place.held = True

    async def _there(self, stream: str) -> StreamInfo | None:
        with contextlib.suppress(UnknownStreamError):
            return await self.host.info(stream)
        return None

    async def _given(self, stream: str, command: Command, since: int) -> Receipt | None:
        for entry in await asyncio.to_thread(self._journal, stream, since):
            kept = entry.command
            if kept.nonce == command.nonce:
                told = Receipt(stream=stream, action=kept.action, key=kept.key, state="applied", block=entry.block)
                if entry.refused is not None:
                    return replace(told, state="refused", block=None, error=entry.refused)
                return replace(told, to=kept.block if kept.action == "rewind" else None)
        return None

    async def _wait_for_owner(self, stream: str) -> None:
        """A worker that the router no longer names is asked by nobody; it lets go at its next look."""
        async with asyncio.timeout(_WAIT_FOR_OWNER):
            try:
                while await self._owners.of(stream) not in (None, self.name):
                    await asyncio.sleep(0.05)
            except TimeoutError:
                raise MovingError(f"'{stream}' is not let go of by its worker.") from None

    async def _release(self, stream: str) -> None:
        place = self._places[stream]
        async with place.changing:
            if not place.held:
                await self._owners.give_up(stream, self.name)  # where the store had refused it
                return
            place.moving = True
            try:
                if place.users:
                    await place.idle.wait()
                with contextlib.suppress(UnknownStreamError):  # deleted
                    await self.host.let_go(stream)
            except Arl2Error as error:
                # It is continued from an older point and the journal.
                logger.warning("'%s' was let go of without a point of now: %s", stream, error)
            finally:
                place.held = place.moving = False
                await self._owners.give_up(stream, self.name)

    def _forget(self) -> None:
        """Places of streams that are neither run nor asked for."""
        for stream, place in list(self._places.items()):
            if not (place.held or place.users or place.claiming or place.changing.locked()):
                del self._places[stream]


async def _pump(watched: AsyncIterator[WatchItem], items: "asyncio.Queue[WatchItem | BaseException | None]") -> None:
    """Put what is watched into a queue, then its error, or None for its end."""
    end: BaseException | None = None
    try:
        async with contextlib.aclosing(watched) as each:  # type: ignore[type-var]  # a generator
            async for item in each:
                items.put_nowait(item)
                if isinstance(item, Ended):
                    break
    except Exception as error:
        end = error
    items.put_nowait(end)
