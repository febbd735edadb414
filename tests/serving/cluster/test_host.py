"""Streams that move between workers, without Ray: who runs them, and what viewers and commands see of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arl2.serving.cluster.host import ClusterHost
from arl2.serving.cluster.peers import RayWorkers, WorkerLostError
from arl2.serving.live.wire import (
    BlockHead,
    Command,
    DrainingError,
    EncodedFrame,
    Ended,
    NoRoomError,
    StreamInfo,
    StreamRequest,
    UnknownStreamError,
    WatchItem,
)
from serving.cluster.fakes import FRAMES, Cluster, digest, settle

RED = StreamRequest(prompt="red")


def run(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """A test that is a coroutine."""

    def begin(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    begin.__name__, begin.__doc__ = test.__name__, test.__doc__
    return begin


class Viewer:
    """Watches in the background."""

    def __init__(self, host: ClusterHost, stream: str, after: int | None = -1) -> None:
        self.items: list[WatchItem] = []
        self._task = asyncio.create_task(self._watch(host.watch(stream, after=after)))

    async def _watch(self, items: AsyncIterator[WatchItem]) -> None:
        async with contextlib.aclosing(items) as each:  # type: ignore[type-var]
            async for item in each:
                self.items.append(item)

    @property
    def heads(self) -> list[BlockHead]:
        return [item for item in self.items if isinstance(item, BlockHead)]

    @property
    def frames(self) -> list[int]:
        return [item.frame for item in self.items if isinstance(item, EncodedFrame)]

    def has(self, frames: int) -> Callable[[], bool]:
        return lambda: self._task.done() or len(self.frames) >= frames

    async def end(self) -> None:
        if self._task.done():
            self._task.result()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def play(cluster: Cluster, stream: str, frames: int, viewer: Viewer) -> None:
    """Make frames wherever the stream runs, each shown before the next."""
    for _ in range(frames):
        there = [host for host in cluster.hosts.values() if stream in host.feeds and not host.dead]
        assert len(there) == 1
        shown = len(viewer.frames)
        there[0].step(stream)
        await settle(viewer.has(shown + 1))


async def at(cluster: Cluster, name: str, stream: str) -> None:
    await settle(lambda: stream in cluster.hosts[name].feeds)


async def on_one_of_two(place: Path) -> tuple[Cluster, ClusterHost, str, str, str]:
    """A cluster of two workers, its host, a red stream, the name of the worker that has it, and that of the other."""
    cluster = Cluster(place, "8", "f")
    host = ClusterHost(cluster, "front")
    stream = (await host.create(RED)).id
    first = cluster.named(stream)
    second = next(name for name in ("8", "f") if name != first)
    return cluster, host, stream, first, second


@run
async def test_a_killed_worker_leaves_no_gap_and_repeats_nothing(tmp_path: Path) -> None:
    cluster, host, stream, first, second = await on_one_of_two(tmp_path)
    viewer = Viewer(host, stream)
    await at(cluster, first, stream)
    await play(cluster, stream, 3 * FRAMES, viewer)
    await host.give(stream, Command(action="prompt", prompt="blue"))
    await play(cluster, stream, FRAMES + 1, viewer)  # the prompt's second block has begun
    cluster.hosts[first].feeds.clear()
    cluster.kill(first)
    await at(cluster, second, stream)
    assert cluster.hosts[second].watched == [(stream, 3)]  # after the last whole block
    cluster.hosts[second].step(stream)  # a frame that the viewer has
    await play(cluster, stream, 2 * FRAMES - 1, viewer)
    assert viewer.frames == list(range(6 * FRAMES))
    assert [head.digest for head in viewer.heads] == [digest(stream, n, "red" if n < 3 else "blue") for n in range(6)]
    assert not any(head.skipped for head in viewer.heads)
    assert cluster.store.made[stream, 4] == [first, second]
    await viewer.end()


@run
async def test_the_first_block_is_not_lost_with_its_worker(tmp_path: Path) -> None:
    cluster, host, stream, first, second = await on_one_of_two(tmp_path)
    viewer = Viewer(host, stream, after=None)
    await at(cluster, first, stream)
    await play(cluster, stream, 1, viewer)
    cluster.hosts[first].feeds.clear()
    cluster.kill(first)
    await at(cluster, second, stream)
    assert cluster.hosts[second].watched == [(stream, -1)]  # not from wherever it is by then
    cluster.hosts[second].step(stream)
    await play(cluster, stream, 2 * FRAMES - 1, viewer)
    assert viewer.frames == list(range(2 * FRAMES))
    await viewer.end()


@run
async def test_a_worker_that_leaves_finishes_its_block_and_moves_the_stream(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "8", "f")
    host = ClusterHost(cluster, "front")
    stream = (await host.create(RED)).id
    first = cluster.named(stream)
    leaving = cluster.workers[first]
    await leaving.look()
    viewer = Viewer(host, stream)
    await at(cluster, first, stream)
    await play(cluster, stream, FRAMES + 1, viewer)
    cluster.ring.remove(first)  # it lives, but the router does not name it any more
    await leaving.look()
    second = cluster.ring[0]
    await at(cluster, second, stream)
    await play(cluster, stream, FRAMES, viewer)
    assert viewer.frames == list(range(3 * FRAMES))
    assert all(len(made) == 1 for made in cluster.store.made.values())  # nothing was made twice
    with pytest.raises(Exception, match="is to end"):
        await leaving.give(stream, Command(action="prompt", prompt="blue"))
    await viewer.end()


@run
async def test_a_worker_that_comes_gets_the_streams_that_the_router_gives_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "f")
    host = ClusterHost(cluster, "front")
    streams = [(await host.create(RED)).id for _ in range(12)]
    viewers = {stream: Viewer(host, stream) for stream in streams}
    for stream in streams:
        await at(cluster, "f", stream)
        await play(cluster, stream, 1, viewers[stream])
    await cluster.workers["f"].look()
    cluster.add("8")
    moving = [stream for stream in streams if cluster.named(stream) == "8"]
    assert moving  # of twelve drawn names
    assert len(moving) < 12
    await cluster.workers["f"].look()
    for stream in streams:
        await at(cluster, cluster.named(stream), stream)
        await play(cluster, stream, FRAMES, viewers[stream])
        assert viewers[stream].frames == list(range(len(viewers[stream].frames)))
    assert sorted(cluster.hosts["f"].gone) == sorted(moving)
    for viewer in viewers.values():
        await viewer.end()


@run
async def test_one_worker_runs_a_stream_though_two_are_asked(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "8", "f")
    host = ClusterHost(cluster, "front")
    stream = (await host.create(RED)).id
    named, other = cluster.named(stream), next(name for name in ("8", "f") if name != cluster.named(stream))
    # A router that passes over a worker that is slow to answer asks another one.
    receipt = await cluster.workers[other].give(stream, Command(action="prompt", prompt="blue"))
    assert receipt.state == "applied"
    assert stream in cluster.hosts[other].feeds
    assert stream not in cluster.hosts[named].feeds
    await cluster.workers[other].look()  # the router names the first
    assert not cluster.hosts[other].feeds
    await host.give(stream, Command(action="prompt", prompt="green"))
    assert stream in cluster.hosts[named].feeds
    # Both at once: one of them, or neither, and the front asks again.
    results = await asyncio.gather(
        *(worker.give(stream, Command(action="prompt", prompt="white")) for worker in cluster.workers.values()),
        return_exceptions=True,
    )
    assert any(not isinstance(one, BaseException) for one in results)
    assert sum(stream in one.feeds for one in cluster.hosts.values()) == 1


@run
async def test_a_worker_waits_for_one_that_the_router_has_forgotten(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "8", "f")
    host = ClusterHost(cluster, "front")
    stream = (await host.create(RED)).id
    first = cluster.named(stream)
    await cluster.workers[first].look()
    cluster.ring.remove(first)
    giving = asyncio.create_task(host.give(stream, Command(action="prompt", prompt="blue")))
    second = cluster.ring[0]
    await settle(lambda: cluster.workers[second]._places[stream].claiming)
    await asyncio.sleep(0.2)
    assert not giving.done()
    assert stream not in cluster.hosts[second].feeds
    await cluster.workers[first].look()
    assert (await giving).state == "applied"
    assert stream not in cluster.hosts[first].feeds


@run
async def test_a_command_that_a_dead_worker_has_kept_is_not_given_twice(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "8", "f")
    host = ClusterHost(cluster, "front")
    stream = (await host.create(RED)).id
    cluster.lose_after = "give"
    receipt = await host.give(stream, Command(action="prompt", prompt="blue"))
    assert (receipt.state, receipt.block) == ("applied", 0)
    assert [entry.command.prompt for entry in cluster.store.streams[stream].given] == ["blue"]
    # Giving the same prompt again is another command.
    await host.give(stream, Command(action="prompt", prompt="blue"))
    assert len(cluster.store.streams[stream].given) == 2


@run
async def test_a_key_that_was_used_before_is_another_command(tmp_path: Path) -> None:
    """Where a worker dies before it has kept the command, the one of before with that key is not taken for it."""
    cluster = Cluster(tmp_path, "8", "f")
    host = ClusterHost(cluster, "front")
    stream = (await host.create(RED)).id
    await host.give(stream, Command(action="prompt", prompt="blue", key="k"))
    first = cluster.named(stream)

    async def dies(*given: Any) -> None:
        cluster.kill(first)
        raise WorkerLostError("died before it kept anything")

    cluster.workers[first].give = dies  # type: ignore[method-assign,assignment]
    receipt = await host.give(stream, Command(action="prompt", prompt="green", key="k"))
    assert (receipt.state, receipt.key) == ("applied", "k")
    assert [entry.command.prompt for entry in cluster.store.streams[stream].given] == ["blue", "green"]


@run
async def test_a_stream_that_a_dead_worker_has_begun_is_not_begun_twice(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "8", "f")
    host = ClusterHost(cluster, "front")
    cluster.lose_after = "create"
    info = await host.create(RED)
    assert list(cluster.store.streams) == [info.id]


@run
async def test_streams_are_counted_once_and_with_this_fronts_viewers(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "8", "f")
    host, other = ClusterHost(cluster, "front"), ClusterHost(cluster, "other")
    streams = sorted([(await host.create(RED)).id for _ in range(5)])
    viewers = [Viewer(host, streams[0]) for _ in range(3)]
    await settle(lambda: any(one.feeds and streams[0] in one.feeds and one.watched for one in cluster.hosts.values()))
    await settle(lambda: cluster.hosts[cluster.named(streams[0])].feeds[streams[0]].viewers == 1)
    listed = await host.streams()
    assert sorted(one.id for one in listed) == streams
    assert {one.state for one in listed} == {"running"}
    assert sum(one.listed for one in cluster.hosts.values()) == 1  # the store is read once, however many workers
    assert (await host.info(streams[0])).viewers == 3
    assert (await other.info(streams[0])).viewers == 1
    cluster.hosts[cluster.named(streams[0])].feeds[streams[0]].put(await cluster.workers["f"].info(streams[0]))
    await settle(lambda: any(isinstance(item, StreamInfo) for item in viewers[2].items))
    assert next(item for item in viewers[2].items if isinstance(item, StreamInfo)).viewers == 3
    shares = [one.share() for one in cluster.workers.values()]
    assert sum(shares) == pytest.approx(5 * 0.25)
    for viewer in viewers:
        await viewer.end()


@run
async def test_a_second_viewer_gets_what_the_worker_has_kept(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "f")
    host = ClusterHost(cluster, "front")
    stream = (await host.create(RED)).id
    first = Viewer(host, stream)
    await at(cluster, "f", stream)
    await play(cluster, stream, 3 * FRAMES, first)
    late = Viewer(ClusterHost(cluster, "front"), stream, after=0)  # by another front
    await settle(late.has(2 * FRAMES))
    assert late.frames == list(range(FRAMES, 3 * FRAMES))
    await first.end()
    await late.end()


@run
async def test_a_stream_is_followed_only_while_somebody_watches(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "f")
    host = ClusterHost(cluster, "front", linger=0.01)
    stream = (await host.create(RED)).id
    viewer = Viewer(host, stream)
    await settle(lambda: cluster.hosts["f"].feeds[stream].viewers == 1)
    await viewer.end()
    await settle(lambda: cluster.hosts["f"].feeds[stream].viewers == 0)
    again = Viewer(host, stream)
    await settle(lambda: cluster.hosts["f"].feeds[stream].viewers == 1)
    await again.end()


@run
async def test_a_list_lacks_nothing_where_a_worker_is_lost(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "8", "f")
    host = ClusterHost(cluster, "front")
    streams = sorted([(await host.create(RED)).id for _ in range(3)])
    cluster.lose_after = "streams"
    assert [one.id for one in await host.streams()] == streams
    assert len(cluster.ring) == 1


def test_late_answers_of_workers_are_said(caplog: pytest.LogCaptureFixture) -> None:
    async def results(**named: Any) -> list[Any]:
        raise TimeoutError

    handle: Any = SimpleNamespace(broadcast=lambda *given: SimpleNamespace(results_async=results))
    assert asyncio.run(RayWorkers(handle).ask_all("running", timeout=3.0)) == []
    assert "not all workers answered 'running' within 3 s" in caplog.text


@run
async def test_errors_of_workers_are_those_of_one_host(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "8", "f")
    host = ClusterHost(cluster, "front")
    for ask in (host.info("abc"), host.delete("abc"), host.give("abc", Command(action="pause")), host.snapshot("abc")):
        with pytest.raises(UnknownStreamError, match="abc"):
            await ask
    with pytest.raises(UnknownStreamError, match="abc"):
        await anext(host.watch("abc"))
    assert not list(tmp_path.glob("owners/*"))  # names that are no stream's leave nothing behind
    for one in cluster.hosts.values():
        one.room = 0
    with pytest.raises(NoRoomError, match="is full"):
        await host.create(RED)


@run
async def test_a_stream_begins_where_there_is_room(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "7", "f")  # each is named for half of all streams
    host = ClusterHost(cluster, "front")
    cluster.hosts["f"].room = 0
    made = 0
    for _ in range(8):
        with contextlib.suppress(NoRoomError):  # four names, all of the full worker: once in sixteen
            made += cluster.named((await host.create(RED)).id) == "7"
    assert made >= 4


@run
async def test_delete_ends_the_viewers_and_leaves_no_note(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "f")
    host = ClusterHost(cluster, "front")
    stream = (await host.create(RED)).id
    viewer = Viewer(host, stream)
    await settle(lambda: cluster.hosts["f"].feeds[stream].viewers == 1)
    await host.delete(stream)
    await settle(lambda: any(isinstance(item, Ended) for item in viewer.items))
    assert viewer.items[-1] == Ended("deleted")
    assert not list(tmp_path.glob("owners/*"))
    with pytest.raises(UnknownStreamError):
        await host.info(stream)


@run
async def test_a_front_that_drains_ends_its_viewers_and_begins_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "f")
    host, other = ClusterHost(cluster, "front"), ClusterHost(cluster, "other")
    stream = (await host.create(RED)).id
    viewer = Viewer(host, stream)
    await at(cluster, "f", stream)
    await play(cluster, stream, FRAMES, viewer)
    assert await host.ready()
    await host.drain()
    await settle(lambda: any(isinstance(item, Ended) for item in viewer.items))
    assert viewer.items[-1] == Ended("draining")
    assert not await host.ready()
    with pytest.raises(DrainingError):
        await host.create(RED)
    with pytest.raises(DrainingError):
        await anext(host.watch(stream))
    back = Viewer(other, stream, after=0)
    await settle(lambda: cluster.hosts["f"].feeds[stream].viewers == 1)
    await play(cluster, stream, FRAMES, back)
    assert back.frames == list(range(FRAMES, 2 * FRAMES))
    await back.end()


@run
async def test_all_workers_gone_is_said_after_a_while(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "f")
    host = ClusterHost(cluster, "front", patience=0.1)
    stream = (await host.create(RED)).id
    cluster.kill("f")
    with pytest.raises(NoRoomError, match="No worker has answered"):
        await host.info(stream)
    assert not await host.ready()
    assert await host.streams() == []


@run
async def test_a_dead_front_is_no_viewer(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "f")
    host = ClusterHost(cluster, "front")
    stream = (await host.create(RED)).id
    viewer = Viewer(host, stream)
    # What a dead front watched is neither read nor closed by anybody.
    watched = cluster.workers["f"].watch(stream, -1, "dead")
    await anext(watched)
    await settle(lambda: cluster.hosts["f"].feeds[stream].viewers == 2)
    await cluster.workers["f"].look()
    assert cluster.hosts["f"].feeds[stream].viewers == 2
    cluster.gone.add("dead")
    await cluster.workers["f"].look()
    assert [item async for item in watched] == []
    assert cluster.hosts["f"].feeds[stream].viewers == 1
    await play(cluster, stream, FRAMES, viewer)
    await viewer.end()


@run
async def test_a_stream_that_begins_during_a_look_stays(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "f")
    host = ClusterHost(cluster, "front")
    streams = [(await host.create(RED)).id]
    later = asyncio.create_task(cluster.workers["f"].create("later", RED))
    await cluster.workers["f"]._places["later"].changing.acquire()  # it is in the list, and begins only now
    answer = cluster.call

    async def call(stream: str, method: str, *given: Any) -> Any:
        if method == "who" and not later.done():
            cluster.workers["f"]._places["later"].changing.release()
            await later
        return await answer(stream, method, *given)

    cluster.call = call  # type: ignore[method-assign]
    await cluster.workers["f"].look()
    assert cluster.hosts["f"].gone == []
    assert sorted(cluster.hosts["f"].feeds) == sorted([*streams, "later"])
