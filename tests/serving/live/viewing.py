"""Hosts of tiny streams, what their viewers see, and what a plain stream gives under the same commands."""

import asyncio
import contextlib
import functools
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.blocks import VideoBlock
from arl2.rollout.settings import ChangeMode
from arl2.serving.live.host import LocalHost
from arl2.serving.live.settings import HostSettings
from arl2.serving.live.store import StreamStore
from arl2.serving.live.wire import BlockHead, Command, EncodedFrame, Ended, StreamInfo, StreamRequest, WatchItem
from arl2.streams.stream import Stream
from rollout.streams import PROMPT, small_pipeline

PATIENCE = 30.0
Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """On a loop of its own, not for ever."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


@contextlib.asynccontextmanager
async def hosting(
    place: Path, *, pipe: ARL2Pipeline | None = None, store: StreamStore | None = None, **settings: Any
) -> AsyncIterator[LocalHost]:
    """A host that is closed in the end; it need not have drained."""
    chosen: dict[str, Any] = {"tell_every": 0.05, "point_every": 2, "sleep_after": None, **settings}
    host = LocalHost(pipe or small_pipeline(), store or StreamStore(place), HostSettings(**chosen))
    try:
        yield host
    finally:
        await host.close()


def as_killed(place: Path, copy: Path) -> None:
    """What a server that were killed now leaves; it goes on writing meanwhile.

    What was written last is copied first, so that the copy never has something whose causes it lacks.
    """
    for stream in (place / "streams").iterdir():
        there = copy / "streams" / stream.name
        for kind in ("points/*.json", "points/*.arl2", "journal/*.json", "*.json"):
            for file in stream.glob(kind):
                if not file.name.startswith("."):  # half-written
                    target = there / file.relative_to(stream)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())


def request(**changes: Any) -> StreamRequest:
    """Of a stream as fast as it can be made."""
    return StreamRequest(**{"prompt": PROMPT, "seed": 3, "realtime": False, **changes})


def prompt(words: str, mode: ChangeMode | None = None, key: str = "") -> Command:
    return Command(action="prompt", prompt=words, mode=mode, key=key)


class Viewer:
    """Watches a stream, checks that every block comes whole and in order, and remembers what it saw."""

    def __init__(self, host: LocalHost, stream: str, after: int | None = None) -> None:
        self._items = host.watch(stream, after=after)
        self.heads: list[BlockHead] = []
        self.others: list[WatchItem] = []
        self.frames: list[EncodedFrame] = []
        self._due = 0

    async def until(self, seen: "Callable[[Viewer], bool]") -> "Viewer":
        """Watch on until something was seen, between blocks; leaves at the end of the stream, too."""
        while not (self._due == 0 and seen(self)):
            item = await anext(self._items)
            if isinstance(item, BlockHead):
                assert self._due == 0, "a head amid a block"
                if self.heads:
                    assert item.block == self.heads[-1].block + 1 + item.skipped
                self.heads.append(item)
                self._due = item.frames
            elif isinstance(item, EncodedFrame):
                head = self.heads[-1]
                place = head.frames - self._due
                assert (item.block, item.frame) == (head.block, head.frame + place)
                assert item.key or place > 0
                self.frames.append(item)
                self._due -= 1
            else:
                self.others.append(item)
                if isinstance(item, Ended):
                    break
        return self

    async def blocks(self, count: int) -> "Viewer":
        return await self.until(lambda viewer: len(viewer.heads) >= count)

    async def end(self) -> Ended:
        await self.until(lambda viewer: False)
        ended = self.others[-1]
        assert isinstance(ended, Ended)
        await self.leave()
        return ended

    async def leave(self) -> None:
        await self._items.aclose()  # type: ignore[attr-defined]

    @property
    def digests(self) -> list[str]:
        return [head.digest for head in self.heads]

    @property
    def numbers(self) -> list[int]:
        return [head.block for head in self.heads]


_undisturbed: list[str] = []


@functools.cache
def _stream() -> Stream:
    return small_pipeline().stream(PROMPT, seed=3, rewind_blocks=0)


def digest(block: VideoBlock) -> str:
    return hashlib.blake2b(block.pixels().tobytes(), digest_size=16).hexdigest()


def plain(blocks: int, *changes: tuple[int, str, ChangeMode | None], pipe: ARL2Pipeline | None = None) -> list[str]:
    """Digests of a stream of the pipeline that gets these prompts before these blocks."""
    if not changes and pipe is None:
        while len(_undisturbed) < blocks:
            _undisturbed.append(digest(next(_stream())))
        return _undisturbed[:blocks]
    found = []
    with (pipe or small_pipeline()).stream(PROMPT, seed=3, rewind_blocks=0) as stream:
        for number in range(blocks):
            for at, words, mode in changes:
                if at == number:
                    stream.change_prompt(words, mode=mode)
            found.append(digest(next(stream)))
    return found


async def eventually(said: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that the host will make true."""
    end = time.monotonic() + PATIENCE
    while not await said():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.01)


async def state_of(host: LocalHost, stream: str, state: str) -> StreamInfo:
    async def said() -> bool:
        return (await host.info(stream)).state == state

    await eventually(said)
    return await host.info(stream)


async def kept_at(host: LocalHost, stream: str, block: int) -> None:
    """Wait until a point is kept before this block; another thread writes it."""

    async def said() -> bool:
        return block in [point.block for point in (await host.info(stream)).points]

    await eventually(said)
