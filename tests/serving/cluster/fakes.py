"""A cluster in one process: workers that can die, leave and come, with hosts that play instead of computing.

What a block shows follows from the stream's name, its number and the prompt, so that two workers make the same.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arl2.serving.cluster.owners import Owners
from arl2.serving.cluster.peers import WorkerLostError
from arl2.serving.cluster.worker import StreamWorker
from arl2.serving.live.feed import Feed
from arl2.serving.live.journal import JournalEntry
from arl2.serving.live.wire import (
    BlockHead,
    Command,
    EncodedFrame,
    Ended,
    Figures,
    NoRoomError,
    Receipt,
    StreamInfo,
    StreamRequest,
    UnknownStreamError,
)

FRAMES = 3  # of a block
POINT_EVERY = 2


@dataclass
class Kept:
    """What the store of all workers has of a stream: its newest point, and the prompts by the block they begin at."""

    request: StreamRequest
    point: int = 0
    prompts: list[tuple[int, str]] = field(default_factory=list)
    given: list[JournalEntry] = field(default_factory=list)

    def prompt(self, block: int) -> str:
        return [prompt for begins, prompt in self.prompts if begins <= block][-1]


@dataclass
class Store:
    streams: dict[str, Kept] = field(default_factory=dict)
    made: dict[tuple[str, int], list[str]] = field(default_factory=dict)  # by stream and block: who made it

    def entries(self, stream: str, since: int) -> list[JournalEntry]:
        return [entry for entry in self.streams[stream].given if entry.block >= since]


def digest(stream: str, block: int, prompt: str) -> str:
    return hashlib.blake2b(f"{stream} {block} {prompt}".encode(), digest_size=16).hexdigest()


class PlayingHost:
    """A ``SharedHost`` that makes a frame whenever ``step`` is called; each stream runs from its first viewer on."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name, self.room = store, name, 100
        self.feeds: dict[str, Feed] = {}
        self.next: dict[str, int] = {}
        self.watched: list[tuple[str, int | None]] = []
        self.gone: list[str] = []
        self.dead, self.listed = False, 0

    async def create(self, request: StreamRequest, *, stream: str | None = None) -> StreamInfo:
        assert stream is not None
        if len(self.feeds) >= self.room:
            raise NoRoomError(f"{self.name} is full.")
        self.store.streams[stream] = Kept(request, prompts=[(0, request.prompt)])
        self._wake(stream)
        return await self.info(stream)

    async def resume(
        self, snapshot: bytes, *, prompt: str | None = None, name: str = "", stream: str | None = None
    ) -> StreamInfo:
        return await self.create(StreamRequest(prompt=prompt or snapshot.decode(), name=name), stream=stream)

    async def streams(self) -> list[StreamInfo]:
        self.listed += 1
        return [await self.info(one) for one in self.store.streams]

    def running(self) -> list[StreamInfo]:
        return [self._info(one) for one in self.feeds]

    async def info(self, stream: str) -> StreamInfo:
        if stream not in self.store.streams:
            raise UnknownStreamError(f"There is no stream '{stream}'.")
        return self._info(stream)

    async def delete(self, stream: str) -> None:
        del self.store.streams[stream]
        self.feeds.pop(stream).put(Ended("deleted"))

    async def give(self, stream: str, command: Command) -> Receipt:
        self._wake(stream)
        kept, block = self.store.streams[stream], self.next[stream]
        if self.feeds[stream].newest == block:
            block += 1
        assert command.prompt is not None
        kept.prompts.append((block, command.prompt))
        kept.given.append(JournalEntry(len(kept.given) + 1, block, command))
        receipt = Receipt(stream=stream, action="prompt", key=command.key, state="applied", block=block)
        self.feeds[stream].put(receipt)
        return receipt

    async def snapshot(self, stream: str, kind: str = "exact", block: int | None = None) -> bytes:
        return self.store.streams[stream].prompt(self.store.streams[stream].point).encode()

    async def watch(self, stream: str, *, after: int | None = None) -> AsyncIterator[Any]:
        self.watched.append((stream, after))
        self._wake(stream, after)
        yield self._info(stream)
        async for item in self.feeds[stream].watch(after):
            yield item

    async def recent(self, stream: str) -> list[tuple[BlockHead, list[EncodedFrame]]]:
        return self.feeds[stream].whole_blocks() if stream in self.feeds else []

    async def ready(self) -> bool:
        return True

    async def drain(self) -> None:
        for stream in list(self.feeds):
            await self.let_go(stream)

    async def close(self) -> None:
        assert not self.feeds

    async def let_go(self, stream: str) -> None:
        if stream in self.feeds:
            while (newest := self.feeds[stream].newest) is not None and newest == self.next[stream]:
                self.step(stream)  # the block under way
            self.store.streams[stream].point = self.next.pop(stream)
            self.feeds.pop(stream).put(Ended("draining"))
            self.gone.append(stream)

    def step(self, stream: str) -> None:
        """Make the next frame."""
        feed, block, kept = self.feeds[stream], self.next[stream], self.store.streams[stream]
        if feed.newest != block:
            self.store.made.setdefault((stream, block), []).append(self.name)
            prompt = kept.prompt(block)
            feed.put(
                BlockHead(
                    block=block,
                    index=block,
                    frame=block * FRAMES,
                    frames=FRAMES,
                    cut=False,
                    prompt=prompt,
                    denoise_seconds=0,
                    commit_seconds=0,
                    decode_seconds=0,
                    digest=digest(stream, block, prompt),
                    codec="avc1",
                )
            )
        number = block * FRAMES + len(feed._blocks[-1].frames)
        feed.put(EncodedFrame(block, number, number % FRAMES == 0, b"%d" % number, 0.0))
        if feed.newest_whole == block:
            self.next[stream] = block + 1
            if (block + 1) % POINT_EVERY == 0:
                kept.point = block + 1

    def _wake(self, stream: str, after: int | None = None) -> None:
        if stream not in self.feeds:
            self.feeds[stream] = Feed()
            # Blocks that the viewer has shown are made again, but not shown.
            self.next[stream] = max(self.store.streams[stream].point, 0 if after is None else after + 1)

    def _info(self, stream: str) -> StreamInfo:
        kept, runs = self.store.streams[stream], stream in self.feeds
        return StreamInfo(
            id=stream,
            state="running" if runs else "asleep",
            request=kept.request,
            prompt=kept.prompts[-1][1],
            width=64,
            height=64,
            fps=8,
            block=self.next.get(stream, kept.point),
            frame=0,
            viewers=self.feeds[stream].viewers if runs else 0,
            figures=Figures(share=0.25 if runs else 0.0),
        )


class Cluster:
    """A ``Workers`` for any number of fronts and for the workers themselves.

    Args:
        place: of the notes of who runs what.
        names: of the first workers.
        make: their hosts; None: such as play.

    Attributes:
        ring: names of the workers that the router knows, in order; a stream belongs to the first of them that is at
            least its name, or to the first.
        workers: all that live.
        hosts: all that there were.
        gone: fronts that are dead.
        lose_after: the next call of that method is lost after the worker has done it.
    """

    def __init__(self, place: Path, *names: str, make: Callable[[str], Any] | None = None) -> None:
        self.store, self.place = Store(), place
        self._make = make or (lambda name: PlayingHost(self.store, name))
        self.workers: dict[str, StreamWorker] = {}
        self.hosts: dict[str, Any] = {}
        self.ring: list[str] = []
        self.lose_after: str | None = None
        self.gone: set[str] = set()
        self._ends: dict[str, asyncio.Event] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        self.hosts[name] = self._make(name)
        self._ends[name] = asyncio.Event()
        owners = Owners(self.place, lambda other: other in self.workers)
        self.workers[name] = StreamWorker(
            self.hosts[name], owners, self, name, journal=self.store.entries, lives=lambda front: front not in self.gone
        )
        self.ring = sorted([*self.ring, name])

    def kill(self, name: str) -> None:
        """Nothing is saved, and whoever waits for it gets an error."""
        self.ring.remove(name)
        del self.workers[name]
        self._ends[name].set()

    def named(self, stream: str) -> str:
        return next((name for name in self.ring if name >= stream), self.ring[0])

    async def call(self, stream: str, method: str, *given: Any) -> Any:
        await asyncio.sleep(0)
        if not self.ring:
            raise WorkerLostError("none")
        name = self.named(stream)
        answer = await self._ask(name, method, stream, *given)
        if self.lose_after == method:
            self.lose_after = None
            self.kill(name)
            raise WorkerLostError("died before it could answer")
        return answer

    async def _ask(self, name: str, method: str, *given: Any) -> Any:
        return await getattr(self.workers[name], method)(*given)

    async def follow(self, stream: str, method: str, *given: Any) -> AsyncGenerator[Any, None]:
        if not self.ring:
            raise WorkerLostError("none")
        name = self.named(stream)
        items = getattr(self.workers[name], method)(stream, *given)
        dead = asyncio.create_task(self._ends[name].wait())
        try:
            while True:
                coming = asyncio.ensure_future(anext(items, None))
                await asyncio.wait({coming, dead}, return_when=asyncio.FIRST_COMPLETED)
                if dead.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
                    raise WorkerLostError("died")
                if (item := coming.result()) is None:
                    return
                yield item
        finally:
            dead.cancel()
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            await items.aclose()

    async def ask_all(self, method: str, *given: Any, timeout: float = 10.0) -> list[Any]:
        async def asked(name: str) -> list[Any]:
            return [await self._ask(name, method, *given)] if name in self.workers else []

        return [one for some in await asyncio.gather(*(asked(name) for name in list(self.ring))) for one in some]


async def settle(until: Any, *, seconds: float = 5.0) -> None:
    """Let the loop run until a condition holds."""
    async with asyncio.timeout(seconds):
        while not until():
            await asyncio.sleep(0.001)
