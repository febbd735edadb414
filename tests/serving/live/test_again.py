"""Rewound, forked, asleep, killed: what follows has the bits of a stream that nobody disturbed."""

import asyncio
from pathlib import Path

import pytest

from arl2.errors import SnapshotError, StreamError
from arl2.serving.live.journal import JournalEntry
from arl2.serving.live.objects import FolderObjects
from arl2.serving.live.store import StreamRecord, StreamStore
from arl2.serving.live.wire import Command, Ended, Point
from rollout.streams import OTHER, PROMPT, small_pipeline
from serving.live.viewing import Viewer, as_killed, digest, hosting, kept_at, plain, prompt, request, run, state_of


def test_a_rewind_goes_to_a_point_and_its_numbers_go_on(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream = (await host.create(request())).id
            viewer = await Viewer(host, stream, after=-1).blocks(5)
            await kept_at(host, stream, 2)
            back = await host.give(stream, Command(action="rewind", block=2, key="back"))
            assert (back.state, back.to, back.key) == ("applied", 2, "back")
            assert back.block is not None
            await viewer.blocks(back.block + 3)
            expected = plain(back.block)
            again = plain(5)[2:]
            assert viewer.digests[: back.block + 3] == expected + again
            head = viewer.heads[back.block]
            assert (head.block, head.index, head.cut) == (back.block, 2, True)
            # From the rewind on there is a point, to which it can go back, too.
            other = await host.give(stream, Command(action="rewind", blocks=1, seed=77))
            assert other.block is not None
            assert other.to is not None
            await viewer.blocks(other.block + 2)
            assert viewer.heads[other.block].cut
            assert viewer.digests[other.block] != viewer.digests[other.to]
            points = [one.block for one in (await host.info(stream)).points]
            assert other.to in points

    run(hosted())


def test_a_fork_is_a_stream_of_its_own(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            # It ends, and so do its forks: none takes time from the others for long.
            stream = (await host.create(request(blocks=8))).id
            viewer = await Viewer(host, stream, after=-1).blocks(4)
            now = await host.give(stream, Command(action="fork"))
            await kept_at(host, stream, 2)
            past = await host.give(stream, Command(action="fork", block=2))
            reseeded = await host.give(stream, Command(action="fork", block=2, seed=9))
            assert [past.block, reseeded.block] == [2, 2]
            assert now.fork
            assert past.fork
            assert reseeded.fork
            for fork, begins in ((now.fork, now.block), (past.fork, 2)):
                theirs = await Viewer(host, fork, after=-1).blocks(3)
                assert theirs.numbers[0] == begins
                assert theirs.heads[0].frame == 9 + 12 * (theirs.numbers[0] - 1)
                assert theirs.digests == plain(theirs.numbers[-1] + 1)[theirs.numbers[0] :]
            other = await Viewer(host, reseeded.fork, after=-1).blocks(1)
            info = await host.info(reseeded.fork)
            assert (info.parent, info.request.seed, info.prompts) == (stream, 9, ((0, PROMPT),))
            assert other.digests[0] != plain(3)[2]
            # The parent does not hear of it.
            await viewer.end()
            assert viewer.digests == plain(8)
            await host.delete(stream)
            assert (await host.info(past.fork)).parent == stream

    run(hosted())


def test_a_stream_that_nobody_watches_sleeps_and_wakes_where_it_was(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path, sleep_after=0.5) as host:
            stream = (await host.create(request(realtime=True))).id
            viewer = await Viewer(host, stream, after=-1).blocks(2)
            change = await host.give(stream, prompt(OTHER))
            assert change.block is not None
            await viewer.blocks(change.block + 1)
            await viewer.leave()
            asleep = await state_of(host, stream, "asleep")
            assert asleep.points[-1].block == asleep.block
            assert await host.recent(stream) == []
            assert host.running() == []
            snapshot = await host.snapshot(stream)
            # A command wakes it; at most the next block was begun before.
            again = await host.give(stream, prompt(PROMPT))
            assert again.block in (asleep.block, asleep.block + 1)
            later = await Viewer(host, stream, after=-1).blocks(2)
            assert later.numbers[0] == asleep.block
            changes = ((change.block, OTHER, None), (again.block, PROMPT, None))
            assert later.digests == plain(asleep.block + 2, *changes)[asleep.block :]
            # The snapshot is of the stream as it slept.
            with small_pipeline().resume_bytes(snapshot) as resumed:
                assert digest(next(resumed)) == plain(asleep.block + 1, changes[0])[-1]

    run(hosted())


@pytest.mark.parametrize("seen", ["all", "less", "nothing", "future"])
def test_after_a_kill_a_viewer_continues_and_everything_has_the_same_bits(tmp_path: Path, seen: str) -> None:
    """The store as it is at one moment of a running stream is what a kill leaves."""

    async def hosted() -> None:
        async with hosting(tmp_path / "a", point_every=3) as host:
            stream = (await host.create(request())).id
            viewer = await Viewer(host, stream, after=-1).blocks(4)
            first = await host.give(stream, prompt(OTHER, "cut"))
            assert first.block is not None
            await viewer.blocks(first.block + 2)
            back = await host.give(stream, Command(action="rewind", blocks=2))
            second = await host.give(stream, prompt(PROMPT))
            assert (back.state, second.state) == ("applied", "applied")
            assert second.block is not None
            await viewer.blocks(second.block + 1)
            (tmp_path / "b").mkdir()
            await asyncio.to_thread(as_killed, tmp_path / "a", tmp_path / "b")
            killed = len(viewer.heads)
            await viewer.blocks(killed + 8)
            expected = viewer.digests
        async with hosting(tmp_path / "b", point_every=3) as host:
            info = (await host.streams())[0]
            assert (info.id, info.state, info.prompts[-1][1]) == (stream, "asleep", PROMPT)
            last = killed - 1
            after = {"all": last, "less": last - 2, "nothing": None, "future": 10**9}[seen]
            again = await Viewer(host, stream, after=after).blocks(6)
            if seen in ("all", "less"):
                assert after is not None
                assert again.numbers[0] == after + 1
                assert again.heads[0].skipped == 0
            assert again.digests == expected[again.numbers[0] : again.numbers[0] + 6]
            # It can be told what to do as ever.
            third = await host.give(stream, prompt(OTHER))
            assert third.state == "applied"
            assert third.block is not None
            assert third.block >= second.block

    run(hosted())


def test_after_a_kill_no_viewer_loses_a_block_whoever_comes_first(tmp_path: Path) -> None:
    """Of a stream that is younger than its second point, and of an older one."""

    async def hosted() -> None:
        async with hosting(tmp_path / "a", point_every=4) as host:
            stream = (await host.create(request())).id
            viewer = await Viewer(host, stream, after=-1).blocks(7)
            await kept_at(host, stream, 4)
            as_killed(tmp_path / "a", tmp_path / "young")
            await viewer.blocks(12)
            await kept_at(host, stream, 8)
            as_killed(tmp_path / "a", tmp_path / "old")
        expected = plain(20)
        for place, seen in (("young", 2), ("old", 8), ("old", 9)):
            async with hosting(tmp_path / place, point_every=4) as host:
                first = await Viewer(host, stream, after=seen).blocks(2)
                others = [await Viewer(host, stream, after=seen - behind).blocks(3) for behind in (1, 2)]
                for one, after in ((first, seen), (others[0], seen - 1), (others[1], seen - 2)):
                    assert (one.numbers[0], one.heads[0].skipped) == (after + 1, 0)
                    assert one.digests == expected[after + 1 :][: len(one.digests)]

    run(hosted())


def test_a_fresh_stream_that_was_killed_begins_again_with_its_commands(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path / "a", point_every=100) as host:
            stream = (await host.create(request())).id
            change = await host.give(stream, prompt(OTHER))
            assert change.block is not None
            viewer = await Viewer(host, stream, after=-1).blocks(change.block + 3)
            as_killed(tmp_path / "a", tmp_path / "b")
        async with hosting(tmp_path / "b", point_every=100) as host:
            again = await Viewer(host, stream, after=change.block - 1).blocks(3)
            assert again.numbers[0] == change.block
            assert again.digests == viewer.digests[change.block : change.block + 3]

    run(hosted())


def test_a_damaged_point_is_passed_over_for_an_older_one(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream = (await host.create(request())).id
            viewer = await Viewer(host, stream, after=-1).blocks(6)
            await host.drain()
            assert await viewer.end() == Ended("draining")
            expected = plain(len(viewer.heads) + 2)
            assert viewer.digests == expected[:-2]
        files = sorted((tmp_path / "streams" / stream / "points").glob("*.arl2"))
        files[-1].write_bytes(b"nothing")
        async with hosting(tmp_path) as host:
            again = await Viewer(host, stream, after=len(viewer.heads) - 1).blocks(2)
            assert again.digests == expected[-2:]

    run(hosted())


def test_a_paused_stream_is_paused_when_it_wakes(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream = (await host.create(request())).id
            await Viewer(host, stream, after=-1).blocks(2)
            await host.give(stream, Command(action="pause"))
            await host.drain()
        async with hosting(tmp_path) as host:
            assert (await host.info(stream)).state == "asleep"
            block = (await host.info(stream)).block
            # Who looks at it sees its last block, and no more.
            looking = await Viewer(host, stream).blocks(1)
            assert (looking.numbers, looking.digests) == ([block - 1], plain(block)[-1:])
            await state_of(host, stream, "paused")
            assert (await host.give(stream, prompt(OTHER))).block == block
            assert (await host.info(stream)).state == "paused"
            await host.give(stream, Command(action="play"))
            again = await Viewer(host, stream, after=block - 1).blocks(2)
            assert again.digests == plain(block + 2, (block, OTHER, None))[block:]

    run(hosted())


def test_a_pause_is_told_again_at_its_block_and_holds_up_no_command(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path / "a", point_every=100) as host:
            stream = (await host.create(request())).id
            await Viewer(host, stream, after=-1).blocks(3)
            paused = await host.give(stream, Command(action="pause"))
            as_killed(tmp_path / "a", tmp_path / "b")
        async with hosting(tmp_path / "b", point_every=100) as host:
            # It begins again at block 0; neither of these waits for somebody to play it.
            change = await host.give(stream, prompt(OTHER))
            again = await host.give(stream, Command(action="pause"))
            assert change.block == again.block == paused.block
            assert (await host.info(stream)).state == "paused"

    run(hosted())


def test_a_snapshot_begins_another_stream(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream = (await host.create(request())).id
            await Viewer(host, stream, after=-1).blocks(3)
            await kept_at(host, stream, 2)
            data = {kind: await host.snapshot(stream, kind, 2) for kind in ("exact", "light")}  # type: ignore[arg-type]
            assert len(data["light"]) < len(data["exact"])
            resumed = await host.resume(data["exact"], name="again")
            assert (resumed.request.seed, resumed.request.name, resumed.prompt, resumed.block) == (
                3,
                "again",
                PROMPT,
                2,
            )
            theirs = await Viewer(host, resumed.id, after=-1).blocks(3)
            begun = theirs.numbers[0]
            assert theirs.digests == plain(begun + 3)[begun:]
            changed = await host.resume(data["light"], prompt=OTHER)
            assert (await Viewer(host, changed.id, after=-1).blocks(1)).heads[0].prompt == OTHER
            for bad in (b"", b"nothing", data["exact"][:-10]):
                with pytest.raises(SnapshotError):
                    await host.resume(bad)
            now = await host.snapshot(stream)
            with small_pipeline().resume_bytes(now) as stream_of_now:
                assert stream_of_now.index >= 3

    run(hosted())


def test_a_hundred_streams_sleep_and_one_of_them_wakes(tmp_path: Path) -> None:
    store = StreamStore(tmp_path)
    for number in range(100):
        record = StreamRecord(
            id=f"stream-{number}",
            created=float(number),
            request=request(),
            model_hash="another" if number == 99 else "",
            width=32,
            height=32,
            fps=16,
        )
        store.write(record)

    async def hosted() -> None:
        async with hosting(tmp_path, store=store) as host:
            infos = await host.streams()
            assert [(info.id, info.state) for info in infos] == [(f"stream-{n}", "asleep") for n in range(100)]
            viewer = await Viewer(host, "stream-42", after=-1).blocks(2)
            assert viewer.digests == plain(2)
            assert [info.id for info in host.running()] == ["stream-42"]
            with pytest.raises(StreamError, match="the model that made it"):
                await Viewer(host, "stream-99").blocks(1)
            refused = await host.give("stream-99", prompt(OTHER))
            assert (refused.state, (await host.info("stream-99")).state) == ("refused", "asleep")

    run(hosted())


def test_streams_make_room_for_others_when_nobody_watches_them(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path, most_streams=1) as host:
            old = (await host.create(request())).id
            await asyncio.sleep(1.1)
            new = (await host.create(request(seed=4))).id
            assert [info.id for info in host.running()] == [new]
            assert (await host.info(old)).state == "asleep"

    run(hosted())


def test_another_host_of_the_same_store_takes_over(tmp_path: Path) -> None:
    async def hosted() -> None:
        stores = [StreamStore(tmp_path, shared=True) for _ in range(2)]
        async with (
            hosting(tmp_path, store=stores[0], shared=True) as one,
            hosting(tmp_path, store=stores[1], shared=True) as two,
        ):
            await one.create(request(), stream="mine")
            assert (await two.info("mine")).state == "asleep"
            viewer = await Viewer(one, "mine", after=-1).blocks(3)
            await one.let_go("mine")
            assert await viewer.end() == Ended("draining")
            assert one.running() == []
            again = await Viewer(two, "mine", after=viewer.numbers[-1]).blocks(3)
            assert viewer.digests + again.digests == plain(again.numbers[-1] + 1)
            assert [info.id for info in await one.streams()] == ["mine"]

    run(hosted())


def test_a_list_of_a_shared_store_reads_little_of_each_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hosted() -> None:
        store = StreamStore(tmp_path, shared=True)
        record = StreamRecord(
            id="a", created=1.0, request=request(), model_hash="f" * 64, width=64, height=64, fps=16, state=None
        )
        store.write(record)
        for block in (4, 8, 12):
            made = Point(block=block, frame=12 * block, index=block, prompt=OTHER, made=1.0)
            store.add_point("a", made, b"bytes")
            store.append("a", JournalEntry(block, block, Command(action="pause")))
        read: list[str] = []
        reads = FolderObjects.read

        def noted(self: FolderObjects, name: str, *, limit: int) -> bytes:
            read.append(name)
            return reads(self, name, limit=limit)

        async with hosting(tmp_path, store=store, shared=True) as host:
            monkeypatch.setattr(FolderObjects, "read", noted)
            (info,) = await host.streams()
            assert (info.state, info.block, info.frame, info.prompt) == ("asleep", 12, 144, OTHER)
            assert read == ["streams/a/stream.json", "streams/a/points/00000012.json"]
            assert (tmp_path / "streams/a/points/00000012.json").write_bytes(b"{")
            assert [one.block for one in await host.streams()] == [8]

    run(hosted())
