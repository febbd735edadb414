"""A host's streams are those of the pipeline, whoever watches; commands have receipts; one stream disturbs no other."""

import asyncio
from pathlib import Path

import pytest

from arl2.errors import Arl2Error, ConfigError
from arl2.serving.live import session as sessions
from arl2.serving.live.journal import JournalEntry
from arl2.serving.live.objects import StoreError
from arl2.serving.live.store import StreamStore
from arl2.serving.live.wire import (
    Command,
    DrainingError,
    Ended,
    NoRoomError,
    Point,
    Receipt,
    StreamHost,
    StreamInfo,
    UnknownStreamError,
)
from arl2.video.h264 import H264Encoder
from rollout.streams import OTHER, PROMPT
from serving.live.viewing import Viewer, eventually, hosting, plain, prompt, request, run, state_of


def test_every_block_once_in_order_and_with_the_bits_of_the_pipeline(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            assert isinstance(host, StreamHost)
            info = await host.create(request(blocks=6))
            assert (info.width, info.height, info.fps, info.prompt) == (32, 32, 16, PROMPT)
            viewer = Viewer(host, info.id, after=-1)
            assert await viewer.end() == Ended("end")
            assert viewer.digests == plain(6)
            assert [(one.block, one.index) for one in viewer.heads] == [(n, n) for n in range(6)]
            assert [one.frame for one in viewer.frames] == list(range(9 + 5 * 12))
            assert len({one.codec for one in viewer.heads}) == 1
            assert viewer.heads[0].codec.startswith("avc1.")
            ended = await host.info(info.id)
            assert (ended.state, ended.block, ended.frame) == ("ended", 6, 69)
            assert [point.block for point in ended.points] == [2, 4, 6]
            # What is kept can still be downloaded, and watched.
            assert [one.block for one, _ in await host.recent(info.id)] == list(range(6))
            assert await Viewer(host, info.id, after=3).end() == Ended("end")

    run(hosted())


@pytest.mark.parametrize("mode", ["soft", "refresh", "cut"])
def test_prompts_apply_at_the_block_of_their_receipts(tmp_path: Path, mode: str) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream = (await host.create(request())).id
            viewer = await Viewer(host, stream, after=-1).blocks(2)
            first = await host.give(stream, prompt(OTHER, mode, key="mine"))  # type: ignore[arg-type]
            assert first.block is not None
            await viewer.blocks(first.block + 1)
            second, third = await asyncio.gather(
                host.give(stream, prompt(PROMPT)), host.give(stream, prompt(OTHER, "soft"))
            )
            assert {one.state for one in (first, second, third)} == {"applied"}
            assert first.key == "mine"
            assert second.block is not None
            assert third.block is not None
            await viewer.blocks(third.block + 2)
            changes = [(first.block, OTHER, mode), (second.block, PROMPT, None), (third.block, OTHER, "soft")]
            assert viewer.digests == plain(len(viewer.heads), *changes)  # type: ignore[arg-type]
            assert viewer.heads[first.block].cut == (mode == "cut")
            told = [one for one in viewer.others if isinstance(one, Receipt)]
            assert [one.state for one in told if one.key == "mine"] == ["queued", "applied"]
            shown = [one.prompt for one in viewer.heads]
            for begins, words in (await host.info(stream)).prompts:
                assert begins >= len(shown) or shown[begins] == words

    run(hosted())


def test_a_stream_is_encoded_once_for_all_viewers_and_a_stalled_one_delays_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Counted(H264Encoder):
        def encode(self, frame, number, *, key=False):  # type: ignore[no-untyped-def]
            calls.append(number)
            return super().encode(frame, number, key=key)

    monkeypatch.setattr(sessions, "H264Encoder", Counted)

    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream = (await host.create(request(blocks=8))).id
            viewers = [Viewer(host, stream, after=-1) for _ in range(20)]
            stalled = await Viewer(host, stream, after=-1).blocks(1)
            await asyncio.gather(*(viewer.end() for viewer in viewers))
            assert {tuple(viewer.digests) for viewer in viewers} == {tuple(plain(8))}
            assert stalled.numbers == [0]
            assert (await host.info(stream)).viewers == 1
            await stalled.leave()
            assert (await host.info(stream)).viewers == 0

    run(hosted())
    assert calls == list(range(9 + 7 * 12))


def test_a_pause_stops_the_release_at_once(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream = (await host.create(request(realtime=True))).id
            watching = asyncio.ensure_future(Viewer(host, stream, after=-1).blocks(5))
            await eventually(lambda: _reached(host, stream, 1))
            paused = await host.give(stream, Command(action="pause"))
            assert paused.state == "applied"
            assert (await host.info(stream)).state == "paused"
            # Commands are taken in a pause.
            assert (await host.give(stream, prompt(OTHER))).state == "applied"
            before = (await host.info(stream)).block
            await asyncio.sleep(0.3)  # as long as five frames are shown
            assert (await host.info(stream)).block == before
            assert (await host.give(stream, Command(action="play"))).state == "applied"
            viewer = await watching
            gaps = [b.released - a.released for a, b in zip(viewer.frames, viewer.frames[1:], strict=False)]
            assert max(gaps) > 0.25
            assert sorted(gaps)[len(gaps) // 2] == pytest.approx(1 / 16, abs=0.03)  # paced all the same

    run(hosted())


async def _reached(host: StreamHost, stream: str, block: int) -> bool:
    return (await host.info(stream)).block >= block


def test_what_is_refused_says_why_and_the_stream_goes_on(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream = (await host.create(request())).id
            viewer = await Viewer(host, stream, after=-1).blocks(3)
            refused = [
                await host.give(stream, command)
                for command in (
                    prompt("   "),
                    Command(action="prompt"),
                    prompt("seven dwarves"),
                    Command(action="rewind", block=1),
                    Command(action="rewind", blocks=10_000),
                    Command(action="fork", block=77_777),
                )
            ]
            assert [one.state for one in refused] == ["refused"] * 6
            assert all(one.error and one.error.endswith((".", ").")) for one in refused)
            assert "nearest" in (refused[3].error or "")
            with pytest.raises(UnknownStreamError, match="no stream 'nothing'"):
                await host.give("nothing", prompt(OTHER))
            seen = len(viewer.heads) + 2
            await viewer.blocks(seen)
            assert viewer.digests == plain(len(viewer.heads))

    run(hosted())


def test_bad_requests_begin_nothing(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path, most_streams=1) as host:
            for bad in (
                request(prompt=" "),
                request(prompt="seven dwarves"),
                request(options={"hieght": 64}),
                request(options={"height": 33}),
                request(options={"window": None}),
                request(options={"seed": 3}),
                request(seed=-1),
                request(blocks=0),
            ):
                with pytest.raises(Arl2Error):
                    await host.create(bad)
            with pytest.raises(ConfigError, match="Did you mean 'height'"):
                await host.create(request(options={"hieght": 64}))
            assert await host.streams() == []
            # Each of them has given its room back.
            await host.create(request())
            with pytest.raises(NoRoomError, match="1 streams run"):
                await host.create(request(seed=4))

    run(hosted())


def test_a_stream_that_is_deleted_tells_its_viewers(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream, other = [(await host.create(request(seed=seed))).id for seed in (3, 4)]
            viewer = await Viewer(host, stream, after=-1).blocks(2)
            neighbour = await Viewer(host, other, after=-1).blocks(1)
            await host.delete(stream)
            assert await viewer.end() == Ended("deleted")
            assert [info.id for info in await host.streams()] == [other]
            for gone in (host.info(stream), host.delete(stream), host.recent(stream), host.snapshot(stream)):
                with pytest.raises(UnknownStreamError):
                    await gone
            with pytest.raises(UnknownStreamError):
                await Viewer(host, stream).blocks(1)
            assert not list((tmp_path / "streams" / stream).glob("*"))
            await neighbour.blocks(len(neighbour.heads) + 2)

    run(hosted())


@pytest.mark.parametrize("command", [prompt(OTHER), Command(action="pause"), Command(action="fork")])
def test_a_command_does_not_bring_back_a_stream_that_is_being_deleted(tmp_path: Path, command: Command) -> None:
    async def hosted() -> None:
        store = StreamStore(tmp_path)
        async with hosting(tmp_path, store=store) as host:
            stream = (await host.create(request())).id
            await Viewer(host, stream, after=-1).blocks(2)
            deleted, given = await asyncio.gather(
                host.delete(stream), host.give(stream, command), return_exceptions=True
            )
            assert deleted is None
            assert isinstance(given, UnknownStreamError)
            assert (host.running(), await host.streams(), store.records()) == ([], [], [])

    run(hosted())


def test_streams_that_begin_alike_share_their_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            made = []
            whole = host.turns.decode.__class__.__enter__
            monkeypatch.setattr(
                host.turns.decode.__class__, "__enter__", lambda lock: (made.append(lock), whole(lock))[1]
            )
            infos = await asyncio.gather(*(host.create(request(blocks=2)) for _ in range(20)))
            viewers = [Viewer(host, info.id, after=-1) for info in infos]
            await asyncio.gather(*(viewer.end() for viewer in viewers))
            assert {tuple(viewer.digests) for viewer in viewers} == {tuple(plain(2))}
            # Of each kind of turn: one first block in all, and a second block of each stream.
            assert [made.count(lock) for lock in (host.turns.denoise, host.turns.decode)] == [21, 21]
            # A seed that was drawn is nobody else's.
            drawn = await host.create(request(seed=None, blocks=1))
            assert drawn.request.seed is not None
            await Viewer(host, drawn.id, after=-1).end()

    run(hosted())


class Full(StreamStore):
    """A disk that is full for a while."""

    full = False

    def add_point(self, id: str, point: Point, data: bytes) -> None:
        self._refuse()
        super().add_point(id, point, data)

    def append(self, id: str, entry: JournalEntry) -> None:
        self._refuse()
        super().append(id, entry)

    def _refuse(self) -> None:
        if self.full:
            raise StoreError("The disk is full; make room.")


def test_a_store_that_refuses_for_a_while_ends_no_stream(tmp_path: Path) -> None:
    async def hosted() -> None:
        store = Full(tmp_path)
        async with hosting(tmp_path, store=store) as host:
            stream = (await host.create(request())).id
            viewer = await Viewer(host, stream, after=-1).blocks(1)
            store.full = True

            async def warned() -> bool:
                return "The disk is full" in ((await host.info(stream)).warning or "")

            await eventually(warned)
            # What could not be replayed is not done; the stream runs on.
            for refused in (prompt(OTHER), Command(action="pause")):
                receipt = await host.give(stream, refused)
                assert (receipt.state, receipt.error) == ("refused", "The disk is full; make room.")
            assert (await host.info(stream)).state == "running"
            await viewer.blocks(len(viewer.heads) + 4)
            kept = len((await host.info(stream)).points)
            store.full = False

            async def well() -> bool:
                info = await host.info(stream)
                return info.warning is None and len(info.points) > kept

            await eventually(well)
            store.full = True
            await host.drain()  # without a point of the end
            assert await viewer.end() == Ended("draining")
        store = StreamStore(tmp_path)
        assert [record.state for record in store.records()] == [None]
        async with hosting(tmp_path, store=store) as host:
            again = await Viewer(host, stream, after=viewer.numbers[-1]).blocks(2)
            assert viewer.digests + again.digests == plain(again.numbers[-1] + 1)

    run(hosted())


def test_a_stream_that_fails_says_why_and_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(H264Encoder):
        def encode(self, frame, number, *, key=False):  # type: ignore[no-untyped-def]
            if self.height == 48 and number == 15:
                raise StoreError("The encoder broke.")
            return super().encode(frame, number, key=key)

    monkeypatch.setattr(sessions, "H264Encoder", Breaks)

    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            broken = (await host.create(request(options={"height": 48, "width": 48}))).id
            sound = (await host.create(request(blocks=12))).id
            watched = Viewer(host, sound, after=-1)
            assert await Viewer(host, broken, after=-1).end() == Ended("failed", "The encoder broke.")
            info = await host.info(broken)
            assert (info.state, info.error) == ("failed", "The encoder broke.")
            refused = await host.give(broken, prompt(OTHER))
            assert refused.state == "refused"
            assert "The encoder broke" in (refused.error or "")
            await watched.end()
            assert watched.digests == plain(12)
            # A stream that has ended can be forked.
            assert (await host.give(sound, prompt(OTHER))).state == "refused"
            fork = await host.give(sound, Command(action="fork"))
            assert (fork.state, fork.block) == ("applied", 12)
            assert fork.fork is not None
            following = await Viewer(host, fork.fork, after=-1).blocks(2)
            assert following.digests == plain(14)[12:]

    run(hosted())


def test_viewers_hear_how_the_stream_is_doing(tmp_path: Path) -> None:
    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            stream = (await host.create(request())).id

            def told(viewer: Viewer) -> list[StreamInfo]:
                return [one for one in viewer.others if isinstance(one, StreamInfo) and one.figures.share > 0]

            viewer = await Viewer(host, stream, after=-1).until(lambda viewer: bool(told(viewer)))
            figures = told(viewer)[-1].figures
            assert figures.block_seconds > 0
            assert figures.frames_a_second > 0
            assert figures.memory_bytes > 1_000
            assert figures.sent_bytes > 0
            assert told(viewer)[-1].viewers == 1
            assert not await host.ready()
            await host.warm()
            assert await host.ready()
            await host.drain()
            assert not await host.ready()
            with pytest.raises(DrainingError):
                await host.create(request())
            assert await viewer.end() == Ended("draining")
            assert (await state_of(host, stream, "asleep")).points

    run(hosted())


def test_pauses_before_a_shared_first_block_is_shown_hold_up_nothing(tmp_path: Path) -> None:
    """They apply after that block, which does not come in a pause."""

    async def hosted() -> None:
        async with hosting(tmp_path) as host:
            first = (await host.create(request())).id
            await Viewer(host, first, after=-1).blocks(2)
            for _ in range(3):
                stream = (await host.create(request())).id
                for action in ("pause", "pause", "play", "pause", "play"):
                    receipt = await host.give(stream, Command(action=action))  # type: ignore[arg-type]
                    assert receipt.state == "applied"
                await Viewer(host, stream, after=-1).blocks(2)

    run(hosted())
