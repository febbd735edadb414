"""Watching a stream of a host, and leaving it again."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from arl2.serving.live.wire import StreamHost, WatchItem

_BEGIN_SECONDS = 2.0


@asynccontextmanager
async def watched(host: StreamHost, stream: str, after: int | None) -> AsyncIterator[AsyncIterator[WatchItem]]:
    """What a viewer gets; it counts as one within.

    What the host refuses at the beginning (no such stream, no room to wake it) is raised at once.
    """
    items = host.watch(stream, after=after)
    first = asyncio.ensure_future(anext(items))
    try:
        # A stream that is paused has perhaps nothing to show now.
        done, _ = await asyncio.wait({first}, timeout=_BEGIN_SECONDS)
        if done and first.exception() is not None and not isinstance(first.exception(), StopAsyncIteration):
            first.result()
        yield _rest(first, items)
    finally:
        if not first.done():
            first.cancel()
            await asyncio.wait({first})
        if isinstance(items, AsyncGenerator):
            await items.aclose()


async def _rest(first: "asyncio.Future[WatchItem]", items: AsyncIterator[WatchItem]) -> AsyncIterator[WatchItem]:
    try:
        yield await first
    except StopAsyncIteration:
        return
    async for item in items:
        yield item
