"""The feed: every viewer gets whole blocks in order from where it wants them, and nobody waits for another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from arl2.serving.live.feed import Feed
from arl2.serving.live.wire import BlockHead, EncodedFrame, Ended, Receipt, WatchItem
from serving.live.viewing import run

FRAMES, SIZE = 3, 100


def head(block: int) -> BlockHead:
    return BlockHead(
        block=block,
        index=block,
        frame=FRAMES * block,
        frames=FRAMES,
        cut=False,
        prompt="words",
        denoise_seconds=0.1,
        commit_seconds=0.1,
        decode_seconds=0.1,
        digest=f"{block}",
        codec="avc1.64000c",
    )


def frame(block: int, place: int) -> EncodedFrame:
    return EncodedFrame(block, FRAMES * block + place, place == 0, bytes(SIZE), 0.0)


def put(feed: Feed, *blocks: int) -> None:
    for block in blocks:
        feed.put(head(block))
        for place in range(FRAMES):
            feed.put(frame(block, place))


async def taken(items: AsyncIterator[WatchItem], count: int) -> list[WatchItem]:
    return [await anext(items) for _ in range(count)]


async def all_of(items: AsyncIterator[WatchItem]) -> list[WatchItem]:
    return [item async for item in items]


def heads(items: list[WatchItem]) -> list[tuple[int, int]]:
    return [(item.block, item.skipped) for item in items if isinstance(item, BlockHead)]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (None, [(4, 0)]),
        (-1, [(2, 0), (3, 0), (4, 0)]),
        (2, [(3, 0), (4, 0)]),
        (4, []),
        (9, []),
        (0, [(2, 1), (3, 0), (4, 0)]),
    ],
)
def test_a_viewer_begins_where_it_wants(after: int | None, expected: list[tuple[int, int]]) -> None:
    feed = Feed()
    put(feed, 2, 3, 4)
    feed.put(Ended("end"))
    items = run(all_of(feed.watch(after)))
    assert heads(items) == expected
    assert len(items) == len(expected) * (1 + FRAMES) + 1
    assert items[-1] == Ended("end")


def test_frames_come_when_they_are_there_and_a_late_viewer_gets_the_block_from_its_start() -> None:
    async def watched() -> None:
        feed = Feed()
        early = feed.watch()
        waiting = asyncio.ensure_future(anext(early))
        await asyncio.sleep(0)
        assert not waiting.done()
        feed.put(head(0))
        feed.put(frame(0, 0))
        assert await waiting == head(0)
        assert await anext(early) == frame(0, 0)
        late = feed.watch()
        assert await taken(late, 2) == [head(0), frame(0, 0)]
        assert feed.viewers == 2
        assert feed.whole_blocks() == []
        feed.put(frame(0, 1))
        assert [await anext(early), await anext(late)] == [frame(0, 1)] * 2
        await early.aclose()  # type: ignore[attr-defined]
        assert feed.viewers == 1

    run(watched())


def test_a_slow_viewer_delays_nobody_and_is_told_what_it_missed() -> None:
    async def watched() -> None:
        feed = Feed(most_bytes=2 * FRAMES * SIZE)
        slow, quick = feed.watch(-1), feed.watch(-1)
        put(feed, 0)
        assert await taken(slow, 2) == [head(0), frame(0, 0)]
        seen: list[WatchItem] = []
        for block in range(1, 8):
            seen += await taken(quick, 1 + FRAMES)
            put(feed, block)
        assert heads(seen) == [(block, 0) for block in range(7)]
        # Two are kept; the one that it has begun comes to its end all the same.
        assert feed.kept_bytes == 2 * FRAMES * SIZE
        assert [one.block for one, _ in feed.whole_blocks()] == [6, 7]
        feed.put(Ended("end"))
        rest = await all_of(slow)
        assert rest[:2] == [frame(0, 1), frame(0, 2)]
        assert heads(rest) == [(6, 5), (7, 0)]

    run(watched())


def test_one_block_is_kept_however_large() -> None:
    feed = Feed(most_bytes=10)
    put(feed, 0, 1)
    assert [one.block for one, _ in feed.whole_blocks()] == [1]
    assert feed.put_bytes == 2 * FRAMES * SIZE


def test_a_source_that_begins_again_repeats_nothing() -> None:
    """The front of a cluster asks another worker from the last whole block on."""

    async def watched() -> None:
        feed = Feed()
        items = feed.watch(-1)
        put(feed, 0)
        feed.put(head(1))
        feed.put(frame(1, 0))
        put(feed, 0, 1, 2)
        feed.put(Ended("end"))
        assert await all_of(items) == [
            one for block in range(3) for one in (head(block), *(frame(block, place) for place in range(FRAMES)))
        ] + [Ended("end")]

    run(watched())


def test_receipts_come_between_and_the_end_after_everything() -> None:
    async def watched() -> None:
        feed = Feed()
        items = feed.watch()
        waiting = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0)
        queued = Receipt(stream="a", action="prompt", key="k", state="queued")
        put(feed, 0)
        feed.put(queued)
        feed.put(Ended("failed", "why"))
        assert await waiting == queued
        rest = await all_of(items)
        assert heads(rest) == [(0, 0)]
        assert rest[-1] == Ended("failed", "why")
        # Who comes later is told, too.
        with contextlib.suppress(StopAsyncIteration):
            assert (await all_of(feed.watch(0))) == [Ended("failed", "why")]

    run(watched())


def test_a_block_that_breaks_off_is_left_at_the_next_one() -> None:
    async def watched() -> None:
        feed = Feed()
        items = feed.watch(-1)
        feed.put(head(0))
        feed.put(frame(0, 0))
        put(feed, 1)
        feed.put(Ended("end"))
        assert heads(await all_of(items)) == [(0, 0), (1, 0)]

    run(watched())
