"""The streams of a host between the store and memory: begun, woken, put to sleep, ended. All on one event loop."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from arl2.errors import Arl2Error
from arl2.serving.live.admission import Admission
from arl2.serving.live.feed import Feed
from arl2.serving.live.heap import give_back
from arl2.serving.live.held import Held
from arl2.serving.live.history import History
from arl2.serving.live.objects import StoreError
from arl2.serving.live.runner import Runner, Wires
from arl2.serving.live.session import Session
from arl2.serving.live.settings import HostSettings
from arl2.serving.live.sizes import StreamSize
from arl2.serving.live.store import StreamRecord
from arl2.serving.live.wire import DrainingError, Ended, NoRoomError, StreamInfo, UnknownStreamError, WatchItem

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
_THREADS = 64


class Streams:
    """Those that a host knows, by name, and what is done to each of them one after the other.

    Args:
        runner: begins and wakes them.
        admission: whether there is room.
        settings: of the host.
        records: those that the store has.
    """

    def __init__(
        self, runner: Runner, admission: Admission, settings: HostSettings, records: list[StreamRecord]
    ) -> None:
        self._runner, self._admission, self.settings = runner, admission, settings
        self.held = {record.id: self.asleep(record) for record in records}
        self._found: WeakValueDictionary[str, Held] = WeakValueDictionary()  # of a shared store, not held
        self.draining = self._finished = False
        self._tasks: set[asyncio.Task] = set()
        self._ticking: asyncio.Task | None = None
        # Some wait for a block: not in the loop's own few threads, which others use, too.
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="arl2-host")

    async def aside(self, work: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """What waits, on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments, **named))

    def require_open(self) -> None:
        if self.draining:
            raise DrainingError("The server is about to end and begins nothing any more; ask again in a moment.")
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())

    async def new(self, name: str, begin: Any, size: StreamSize) -> StreamInfo:
        self.require_open()
        if len(self.held) >= self.settings.most_kept:
            raise NoRoomError(f"{len(self.held)} streams are kept, and no more are taken; delete some.")
        await self._enter(name, size)
        feed = Feed(most_bytes=self.settings.ring_bytes)
        try:
            history, session = await self.aside(begin, self._wires(feed, name))
        except BaseException:
            self._admission.leave(name)
            raise
        held = Held(history.record, feed, history, session)
        self.held[name] = held
        session.start()
        if self.draining:
            await self.leave(held)
        return held.info()

    async def wake(self, held: Held, after: int | None) -> None:
        """Its lock is held, and it sleeps."""
        self.require_open()
        if self.settings.shared:  # others may have run it since it was read
            held.record, held.history = await self.aside(self._runner.store.read, held.record.id), None
            await self.read(held)
        await self._enter(held.record.id, self._runner.maker.size(held.newest_record.request))
        held.feed = Feed(most_bytes=self.settings.ring_bytes)
        try:
            wires = self._wires(held.feed, held.record.id)
            held.session = await self.aside(self._runner.wake, held.known, after, wires)
        except BaseException:
            self._admission.leave(held.record.id)
            raise
        self.held[held.record.id] = held
        held.touch()
        held.session.start()

    async def _enter(self, name: str, size: StreamSize) -> None:
        """Room for a stream; those that nobody watches fall asleep for it, the ones first that nobody has for longest.

        Raises:
            NoRoomError: there is none.
        """
        while True:
            try:
                self._admission.enter(name, size.size, size.work, smaller=size.smaller)
            except NoRoomError:
                idle = [held for held in self.held.values() if held.session is not None and held.idle_for() > 1.0]
                if not idle:
                    raise
                await self.sleep(max(idle, key=Held.idle_for))
            else:
                return

    def _wires(self, feed: Feed, name: str) -> Wires:
        loop = asyncio.get_running_loop()

        def put(item: WatchItem) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the stream
                loop.call_soon_threadsafe(feed.put, item)

        def over(session: Session, ended: Ended | None) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: self.task(self._over(name, session, ended)))

        return Wires(put, over)

    def asleep(self, record: Any) -> Held:
        return Held(record, Feed(most_bytes=self.settings.ring_bytes))

    async def find(self, stream: str) -> Held:
        held = self.held.get(stream) or self._found.get(stream)
        if held is None:
            if not self.settings.shared:
                raise unknown(stream)
            record = await self.aside(self._runner.store.read, stream)
            # Those who ask for it at the same moment get the same one, with one lock.
            held = self.held.get(stream) or self._found.setdefault(stream, self.asleep(record))
        await self.read(held)
        return self.held.get(stream, held)

    async def read(self, held: Held) -> None:
        if held.history is None:
            read = partial(History.read, self._runner.store, held.record, keep=self.settings.keep_points)
            try:
                history = await self.aside(read)
            except UnknownStreamError:
                held.deleted = True
                return
            except StoreError as error:
                history = History(self._runner.store, held.record, keep=self.settings.keep_points)
                history.assume(state="failed", error=str(error))
            held.history = held.history or history

    # Falling asleep, ending

    async def sleep(self, held: Held) -> None:
        """If nobody watches it, let it finish its block, keep it and free its memory."""
        async with held.lock:
            if held.watchers or held.commands or held.session is None:
                return
            ended = await self._finish(held)
            held.feed.put(ended or Ended("draining"))
            held.feed = Feed(most_bytes=self.settings.ring_bytes)
        await self.aside(give_back)

    async def leave(self, held: Held) -> None:
        """Finish it, whoever watches."""
        async with held.lock:
            ended = await self._finish(held) if held.session is not None else None
            held.feed.put(ended or Ended("draining"))
            held.feed = Feed(most_bytes=self.settings.ring_bytes)
            if self.settings.shared:
                self.held.pop(held.record.id, None)
                self._found.pop(held.record.id, None)

    async def _finish(self, held: Held) -> Ended | None:
        """Its lock is held. What it ended with, if it did not end by this."""
        session = held.session
        assert session is not None
        try:
            await self.aside(session.finish)
        except Exception as error:
            logger.exception("stream %s could not be saved", held.record.id)
            await self.aside(held.known.end, state="failed", error=str(error) or repr(error))
        if session.error is not None:
            await self.aside(held.known.end, state="failed", error=session.error)
        await self.off(held, session.close)
        return held.ended

    async def _over(self, name: str, session: Session, ended: Ended | None) -> None:
        """A session says that nothing follows."""
        held = self.held.get(name)
        if held is None or ended is None:
            return
        async with held.lock:
            if held.session is not session:
                return
            with contextlib.suppress(Arl2Error):
                await self.aside(session.finish)
            if session.error is not None:
                ended = Ended("failed", session.error)
            state = "failed" if ended.reason == "failed" else "ended"
            await self.aside(held.known.end, state=state, error=ended.error)
            await self.off(held, session.close)
            held.touch()
            held.feed.put(ended)

    async def off(self, held: Held, close: Any) -> None:
        await self.aside(close)
        held.session = None
        self._admission.leave(held.record.id)

    async def finish(self) -> None:
        """Nothing more is begun here; wait for what is under way, and let go of threads and store."""
        if self._finished:
            return
        self.draining = self._finished = True
        if self._ticking is not None:
            self._ticking.cancel()
        for held in list(self.held.values()):
            async with held.lock:
                if held.session is not None:
                    await self.off(held, held.session.close)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.aside(self._runner.close)
        self._pool.shutdown(wait=False)

    async def _tick(self) -> None:
        """Tell viewers how streams are doing, and let those sleep that nobody watches."""
        after = self.settings.sleep_after
        while True:
            await asyncio.sleep(self.settings.tell_every)
            for held in list(self.held.values()):
                if held.session is not None:
                    held.feed.put(held.info())
                if after is None or held.idle_for() < after or held.lock.locked():
                    continue
                if held.session is not None:
                    self.task(self.sleep(held))
                elif held.feed.newest is not None and held.ended is not None:
                    held.feed = Feed(most_bytes=self.settings.ring_bytes)

    def task(self, work: "Coroutine[Any, Any, Result]") -> "asyncio.Task[Result]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def unknown(stream: str) -> UnknownStreamError:
    """There is none of that name."""
    return UnknownStreamError(f"There is no stream '{stream:.80}'.")
