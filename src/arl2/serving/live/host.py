"""Many live streams of one model in this process: they run while somebody wants them, and sleep in the store."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TypeVar

from arl2.errors import Arl2Error, StreamError
from arl2.pipeline.free_memory import available_bytes
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.live.admission import Admission
from arl2.serving.live.feed import Feed
from arl2.serving.live.held import Held
from arl2.serving.live.lifecycle import Streams, unknown
from arl2.serving.live.maker import StreamMaker
from arl2.serving.live.objects import StoreError
from arl2.serving.live.runner import Runner, new_name
from arl2.serving.live.settings import HostSettings
from arl2.serving.live.store import StreamStore
from arl2.serving.live.turns import Turns
from arl2.serving.live.wire import (
    BlockHead,
    Command,
    DrainingError,
    EncodedFrame,
    Ended,
    NoRoomError,
    Receipt,
    StreamInfo,
    StreamRequest,
    UnknownStreamError,
    WatchItem,
)
from arl2.streams.state import SnapshotKind

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class LocalHost:
    """A ``SharedHost`` (of a store of its own: a ``StreamHost``) with threads of this process; used on one event loop.

    Args:
        pipe: the model, on its device.
        store: where streams are kept; it is closed with the host.
        settings: see there.
        turns: that other work of the same model takes, too; None: there is none.
    """

    def __init__(
        self,
        pipe: ARL2Pipeline,
        store: StreamStore,
        settings: HostSettings | None = None,
        *,
        turns: Turns | None = None,
    ) -> None:
        self.settings, self.turns = settings or HostSettings(), turns or Turns()
        admission = Admission.of_free(
            available_bytes(str(pipe.device)),
            most=self.settings.most_streams,
            limit=self.settings.memory_bytes,
            retry_after=self.settings.sleep_after or 10.0,
        )
        maker = StreamMaker(pipe, self.turns, self.settings)
        if self.settings.first_blocks and maker.may_keep(self.settings.first_blocks, admission.limit):
            maker.share_first_blocks(self.settings.first_blocks)
        self._runner = Runner(maker, store, self.settings, self.turns)
        records = [] if self.settings.shared else store.records()
        self._streams = Streams(self._runner, admission, self.settings, records)
        self._warming: asyncio.Task | None = None

    # Streams

    async def create(self, request: StreamRequest, *, stream: str | None = None) -> StreamInfo:
        """Begin a stream; under the name ``stream``, which the caller has drawn."""
        name = stream or new_name()
        begin = partial(self._runner.create, name, request)
        return await self._streams.new(name, begin, self._runner.maker.size(request))

    async def resume(
        self, snapshot: bytes, *, prompt: str | None = None, name: str = "", stream: str | None = None
    ) -> StreamInfo:
        """Begin a stream from the bytes of a snapshot."""
        own, maker = stream or new_name(), self._runner.maker
        facts = await self._streams.aside(maker.facts, snapshot)
        begin = partial(self._runner.resume, own, snapshot, facts, prompt, name)
        return await self._streams.new(own, begin, maker.size(facts))

    async def streams(self) -> list[StreamInfo]:
        """All streams, those asleep too, oldest first; of a shared store, those that others run as ``_others``."""
        found = list(self._streams.held.values())
        await asyncio.gather(*(self._streams.read(held) for held in found))
        infos = [held.info() for held in found if not held.deleted]
        if self.settings.shared:
            infos += await self._streams.aside(self._others, {info.id for info in infos})
        return sorted(infos, key=lambda info: (info.created, info.id))

    async def info(self, stream: str) -> StreamInfo:
        """One stream, as it is; does not wake it."""
        return (await self._streams.find(stream)).info()

    def running(self) -> list[StreamInfo]:
        """The streams that this host holds in memory: those that it runs, paused ones too."""
        return [held.info() for held in self._streams.held.values() if held.session is not None]

    async def delete(self, stream: str) -> None:
        """End a stream, and remove what is kept of it."""
        held = await self._streams.find(stream)
        async with held.lock:
            if held.deleted:
                raise unknown(stream)
            if held.session is not None:
                await self._streams.off(held, held.session.close)
            await self._streams.aside(self._runner.store.delete, stream)
            held.deleted = True
            self._streams.held.pop(stream, None)
            held.feed.put(Ended("deleted"))

    async def give(self, stream: str, command: Command) -> Receipt:
        """Give a command, and wait for its last receipt: at most a block. Wakes a stream."""
        held = await self._streams.find(stream)
        self._streams.require_open()
        held.touch()
        held.feed.put(Receipt(stream=stream, action=command.action, key=command.key, state="queued"))
        # In a task of its own: it is applied whether the one who gave it waits or not, and viewers get its receipt.
        return await asyncio.shield(self._streams.task(self._applied(held, command)))

    async def snapshot(self, stream: str, kind: SnapshotKind = "exact", block: int | None = None) -> bytes:
        """Of now, or of a kept point."""
        held = await self._streams.find(stream)
        if block is None and held.session is not None:
            return await self._streams.aside(held.session.snapshot, kind)

        def kept() -> bytes:
            if kind == "exact" and block is not None:
                return held.known.data(held.known.point_at(block).block)
            twin, _, _ = self._runner.at_point(held.known, block)
            with twin:
                return twin.save_bytes(kind)

        return await self._streams.aside(kept)

    async def watch(self, stream: str, *, after: int | None = None) -> AsyncIterator[WatchItem]:
        """What a viewer gets; see ``StreamHost``."""
        held = await self._streams.find(stream)
        held.watchers += 1  # from now on it does not fall asleep
        try:
            async with held.lock:
                if held.deleted:
                    raise unknown(stream)
                if held.ended is None and held.session is None:
                    await self._streams.wake(held, after)
                elif held.ended is not None and held.feed.newest is None:
                    held.feed.put(held.ended)
                feed, session = held.feed, held.session
            if after is not None and session is not None and after > session.block + self.settings.most_unknown:
                after = None  # nobody was ever shown that
            yield held.info()
            async with contextlib.aclosing(feed.watch(after)) as items:
                async for item in items:
                    yield item
        finally:
            held.watchers -= 1
            held.touch()

    async def recent(self, stream: str) -> list[tuple[BlockHead, list[EncodedFrame]]]:
        """Whole blocks that are still kept, oldest first: for downloads. Does not wake the stream."""
        return (await self._streams.find(stream)).feed.whole_blocks()

    def _others(self, here: set[str]) -> list[StreamInfo]:
        """Streams of the store that are not held here, by their records and newest points alone: lists are asked for
        every few seconds, and the store may have many."""
        store, found = self._runner.store, []
        for record in store.records():
            if record.id in here:
                continue
            info = Held(record, Feed()).info()
            with contextlib.suppress(UnknownStreamError):  # deleted since
                if record.state is None:
                    try:
                        point = store.last_point(record.id)
                    except StoreError as error:
                        info, point = replace(info, state="failed", error=str(error)), None
                    if point is not None:
                        info = replace(info, block=point.block, frame=point.frame, prompt=point.prompt)
                found.append(info)
        return found

    # The host

    async def warm(self) -> None:
        """Make a block that nobody sees; afterwards the host is ready."""
        if self._warming is None:
            self._warming = asyncio.create_task(self._streams.aside(self._runner.maker.warm))
        await self._warming

    async def ready(self) -> bool:
        """Whether a warm block was made, and nothing is draining; the first call begins it."""
        if self._warming is None and not self._streams.draining:
            self._streams.task(self.warm())
        done = self._warming is not None and self._warming.done() and self._warming.exception() is None
        return done and not self._streams.draining

    async def drain(self) -> None:
        """Begin nothing any more; let every stream finish its block, save it, and end its viewers with "draining"."""
        self._streams.draining = True
        await asyncio.gather(*(self._streams.leave(held) for held in list(self._streams.held.values())))

    async def let_go(self, stream: str) -> None:
        """Somebody else runs it from now on; nothing happens if it does not run here."""
        held = self._streams.held.get(stream)
        if held is not None:  # one that sleeps is forgotten, too: it goes on in the store
            await self._streams.leave(held)

    async def close(self) -> None:
        """After ``drain``: let go of everything."""
        if self._warming is not None:
            await asyncio.gather(self._warming, return_exceptions=True)
        await self._streams.finish()

    # Commands

    async def _applied(self, held: Held, command: Command) -> Receipt:
        receipt = Receipt(stream=held.record.id, action=command.action, key=command.key, state="applied")
        held.commands += 1  # it does not fall asleep meanwhile
        try:
            if command.action == "fork":
                receipt = await self._fork(held, command, receipt)
            else:
                async with held.lock:
                    if held.deleted:
                        raise unknown(held.record.id)
                    if (ended := held.ended) is not None:
                        why = "has ended" if ended.error is None else f"failed: {ended.error.rstrip('.')}"
                        raise StreamError(f"The stream {why}; fork it at one of its points, or begin another.")
                    if held.session is None:
                        await self._streams.wake(held, None)
                    assert held.session is not None
                    future = held.session.give(command)
                block, to = await _of(future)
                receipt = replace(receipt, block=block, to=to)
        except (NoRoomError, DrainingError, UnknownStreamError) as error:
            held.feed.put(replace(receipt, state="refused", error=str(error)))
            if isinstance(error, NoRoomError):
                error.told = True
            raise
        except Arl2Error as error:
            receipt = replace(receipt, state="refused", error=str(error))
        except Exception as error:
            logger.exception("a command failed")
            receipt = replace(receipt, state="refused", error=f"This failed ({type(error).__name__}: {error}).")
        finally:
            held.commands -= 1
        held.touch()
        held.feed.put(receipt)
        return receipt

    async def _fork(self, held: Held, command: Command, receipt: Receipt) -> Receipt:
        if command.block is None and held.ended is None:
            async with held.lock:
                if held.deleted:
                    raise unknown(held.record.id)
                if held.session is None:
                    await self._streams.wake(held, None)
                assert held.session is not None
                future = held.session.fork()
            block, frame, twin = await _of(future)
        else:
            twin, block, frame = await self._streams.aside(self._runner.at_point, held.known, command.block)
        name = new_name()
        begin = partial(self._runner.fork, name, held.known, twin, block=block, frame=frame, seed=command.seed)
        with contextlib.ExitStack() as undo:
            undo.callback(twin.close)
            await self._streams.new(
                name, lambda wires: begin(wires=wires), self._runner.maker.size(held.known.record.request)
            )
            undo.pop_all()
        return replace(receipt, block=block, fork=name)


async def _of(future: "Future[Result]") -> Result:
    return await asyncio.wrap_future(future)
