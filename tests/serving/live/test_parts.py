"""Turns are fair, frames are released on time, and there is room or a sentence that says what would fit."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from arl2.errors import ConfigError, SnapshotError
from arl2.serving.live.admission import Admission
from arl2.serving.live.first_blocks import FirstBlocks
from arl2.serving.live.history import History, new_point
from arl2.serving.live.maker import StreamMaker
from arl2.serving.live.point_writer import PointWriter
from arl2.serving.live.release import Release
from arl2.serving.live.settings import HostSettings
from arl2.serving.live.store import StreamRecord, StreamStore
from arl2.serving.live.turns import FairLock, Turns
from arl2.serving.live.wire import Command, NoRoomError, Point
from arl2.streams.stream import Stream
from pipeline.stand_in import stand_in_pipeline
from rollout.streams import PROMPT, SMALL, small_pipeline
from serving.live.viewing import hosting, request, run
from serving.test_keep_up import PATIENCE, until


def test_turns_go_round() -> None:
    lock, order, mine = FairLock(), [], 5

    def work(name: str) -> None:
        for _ in range(mine):
            with lock:
                order.append(name)
                # Nobody takes a second turn before the others have had one.
                until(lambda: lock.waiting == 2 or len(order) > 3 * mine - 3)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    rounds = [set(order[at : at + 3]) for at in range(0, 3 * (mine - 1), 3)]
    assert rounds == [set("abc")] * (mine - 1)


def test_an_error_gives_the_turn_back() -> None:
    lock = FairLock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    with lock:
        assert lock.waiting == 0


class Clock:
    """Time passes as fast as somebody waits for it; ``at`` happens at its moment."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.at: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.seconds

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        end = float("inf") if seconds is None else self.seconds + seconds
        if self.at and self.at[0][0] <= end:
            moment, action = self.at.pop(0)
            self.seconds = max(self.seconds, moment)
            action()
        else:
            assert seconds is not None, "it would wait for ever"
            self.seconds = end


def test_frames_are_released_at_their_rate_and_a_pause_only_moves_them() -> None:
    clock = Clock()
    release = Release(4, now=clock.now, wait=clock.wait)
    clock.at = [(0.6, release.pause), (5.6, lambda: release.pause(False))]
    released = []
    for _ in range(6):
        assert release.frame()
        released.append(clock.seconds)
    # 0.15 s were left when it was paused.
    assert released == pytest.approx([0.0, 0.25, 0.5, 5.75, 6.0, 6.25])
    clock.seconds += 0.3  # the encoder was late by 0.05: made up for
    assert release.frame()
    assert release.frame()
    assert clock.seconds == pytest.approx(6.75)
    clock.seconds += 3.0  # much too late: no hurry
    for _ in range(2):
        assert release.frame()
    assert clock.seconds == pytest.approx(10.0)


def test_the_end_waits_for_nothing() -> None:
    clock = Clock()
    for fps in (4, None):
        release = Release(fps, now=clock.now, wait=clock.wait)
        release.pause()
        release.hurry()
        assert [release.frame() for _ in range(3)] == [True] * 3
        release.close()
        assert not release.frame()
    assert clock.seconds == 0.0


def test_there_is_room_or_a_sentence_that_says_what_would_fit() -> None:
    room = Admission(most=3, limit=1000, retry_after=7.0)
    room.enter("a", 400)
    room.enter("b", 400)
    with pytest.raises(NoRoomError, match=r"about 0\.0 MB.*2 others run.*now this would fit: window=200") as refused:
        room.enter("c", 300, smaller=lambda free, working: f"window={free}")
    assert refused.value.retry_after == 7.0
    with pytest.raises(NoRoomError, match="no stream of this size fits"):
        room.enter("c", 2000, smaller=lambda free, working: None)
    room.enter("c", 200)
    assert (room.running, room.used) == (3, 1000)
    room.leave("a")
    room.leave("a")
    room.enter("d", 0)
    with pytest.raises(NoRoomError, match="3 streams run"):
        room.enter("e", 0)


def test_streams_that_take_turns_work_in_the_same_memory() -> None:
    room = Admission(most=9, limit=1000, retry_after=7.0)
    room.enter("a", 100, 500)
    room.enter("b", 100, 300)
    assert room.used == 700
    asked: list[tuple[int, int]] = []

    def smaller(free: int, working: int) -> str:
        asked.append((free, working))
        return "window=1"

    with pytest.raises(NoRoomError, match="now this would fit"):
        room.enter("c", 301, 0, smaller=smaller)
    with pytest.raises(NoRoomError):
        room.enter("c", 100, 701)
    assert asked[0] == (800, 500)
    room.enter("c", 300, 500)
    assert room.used == 1000


def test_what_a_stream_takes_is_known_before_it_is_begun(tmp_path: Path) -> None:
    maker = StreamMaker(small_pipeline(), Turns())
    size = maker.size(request())
    with maker.begin(request()) as stream:
        next(stream)
        held = stream.memory_bytes
    pictures = (2 * 12 * 3 + 16 * 3 / 2) * 32 * 32  # two blocks of them, and the encoder's
    assert held / 2 < size.size - pictures < 4 * held
    assert size.work > 0
    narrow = maker.size(request(options={"window": 6}))
    assert narrow.size < size.size
    assert size.smaller(narrow.size + narrow.work, 0) == "window=6"
    assert size.smaller(narrow.size + 2 * narrow.work, 2 * narrow.work) == "window=6"
    # What is said to fit does fit: it is measured as what is asked for is.
    wan = StreamMaker(stand_in_pipeline("HS", replace(SMALL, height=256, width=256)), Turns())
    large = wan.size(request())
    for share in (0.9, 0.7, 0.5, 0.3):
        free = int(share * (large.size + large.work))
        for words in (large.smaller(free, 0) or "").split("; or "):
            advised = wan.size(request(options={n: int(v) for n, v in re.findall(r"(\w+)=(\d+)", words)}))
            assert words == "" or advised.size + advised.work <= free
    with pytest.raises(ConfigError, match="needs a window"):
        maker.size(request(options={"window": None}))
    assert maker.size(request(options={"window": None, "num_frames": 21})).size > 0

    async def hosted() -> None:
        room = size.size + narrow.size + max(size.work, narrow.work)
        async with hosting(tmp_path, memory_bytes=room) as host:
            one = await host.create(request())
            with pytest.raises(NoRoomError, match="window=6"):
                await host.create(request(seed=4))
            with pytest.raises(NoRoomError) as refused:
                await host.give(one.id, Command(action="fork"))
            assert refused.value.told
            await host.create(request(seed=4, options={"window": 6}))

    run(hosted())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 4096, "width": 4096}, "at most 4,096 pixels, 4 times the model's 32x32"),
        ({"window": 60_000}, "window of at most 144"),
        ({"window": None, "num_frames": 10_000}, "window of at most 144"),
    ],
)
def test_one_stream_cannot_hold_up_all_others(options: dict, words: str) -> None:
    maker = StreamMaker(small_pipeline(), Turns())
    with pytest.raises(ConfigError, match=re.escape(words)):
        maker.size(request(options=options))
    maker.size(request(options={"height": 64, "width": 64, "window": 144}))
    wide = HostSettings(most_pixels=1e6, most_window=1e6)
    large = StreamMaker(small_pipeline(), Turns(), wide).size(request(options=options))
    assert large.size + large.work > 3 * maker.size(request()).size


def test_a_snapshot_is_measured_before_anything_is_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline()
    plain = StreamMaker(pipe, Turns()).size(request())

    def saved(prompts: str | list[str] = PROMPT, **options: Any) -> bytes:
        with pipe.stream(prompts, **{"rewind_blocks": 0, **options}) as stream:
            next(stream)
            return stream.save_bytes("exact")

    async def hosted() -> None:
        async with hosting(tmp_path, pipe=pipe, memory_bytes=plain.size + plain.work) as host:
            monkeypatch.setattr(StreamMaker, "resume", None)  # nothing that is refused comes so far
            with pytest.raises(ConfigError, match="at most 4,096 pixels"):
                await host.resume(saved(height=128, width=128))
            for options in ({"height": 64, "width": 64}, {"window": 30}, {"rewind_blocks": 20, "rewind_kind": "exact"}):
                with pytest.raises(NoRoomError):
                    await host.resume(saved(**options))
            with pytest.raises(SnapshotError, match="2 videos side by side"):
                await host.resume(saved([PROMPT, PROMPT]))
            monkeypatch.undo()
            info = await host.resume(saved(window=6))
            assert info.request.options["window"] == 6

    run(hosted())


def test_a_first_block_that_fails_is_tried_again_by_the_next_stream() -> None:
    begun: list[Stream] = []

    def begin() -> Stream:
        begun.append(small_pipeline().stream(PROMPT, seed=len(begun), rewind_blocks=0))
        return begun[-1]

    firsts = FirstBlocks(Turns(), most=1)
    opening = firsts.opening("key", begin)
    begun[0].close()  # so that it fails
    with pytest.raises(ValueError, match="closed"):
        opening()
    with pytest.raises(ValueError, match="closed"):
        opening()
    stream, block = firsts.opening("key", begin)()
    assert block is not None
    assert (stream.index, block.index) == (1, 0)
    # Of one key more than are kept the oldest goes.
    firsts.opening("other", begin)
    firsts.opening("key", begin)
    assert len(begun) == 4
    assert firsts.made == 2


def test_the_first_block_that_was_not_used_longest_goes() -> None:
    begun: list[str] = []

    def begin(key: str) -> Stream:
        begun.append(key)
        return small_pipeline().stream(PROMPT, seed=3, rewind_blocks=0)

    firsts = FirstBlocks(Turns(), most=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        firsts.opening(key, partial(begin, key))
    assert begun == ["a", "b", "c", "b"]


class Slow(StreamStore):
    """Takes points when it is let, and remembers their order."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.let, self.kept = threading.Event(), []

    def add_point(self, id: str, point: Point, data: bytes) -> None:
        assert self.let.wait(PATIENCE)
        super().add_point(id, point, data)
        self.kept.append((id, point.block))


def test_a_slow_store_has_one_point_of_each_stream_in_its_queue(tmp_path: Path) -> None:
    store, failed = Slow(tmp_path), []
    writers = []
    with small_pipeline().stream(PROMPT, seed=3, rewind_blocks=0) as stream, ThreadPoolExecutor(1) as thread:
        for id in ("one", "other"):
            record = StreamRecord(
                id=id, created=1.0, request=request(), model_hash="", width=32, height=32, fps=16, parent=None
            )
            store.write(record)
            writers.append(PointWriter(History(store, record, keep=9), thread, failed.append, released=100))
        for number in range(6):
            writers[0].add(new_point(block=number, frame=0, index=0, prompt="", entry=0), stream.fork())
        writers[1].add(new_point(block=7, frame=0, index=0, prompt="", entry=0), stream.fork())
        store.let.set()
        for writer in writers:
            writer.wait()
    # The oldest of those that had to wait were left out: each holds a stream's memory.
    assert store.kept == [("one", 0), ("other", 7), ("one", 3), ("one", 4), ("one", 5)]
    assert failed == []
    store.close()


@pytest.mark.parametrize(
    "wrong", [{"point_every": 0}, {"keep_points": 0}, {"scale": 0}, {"margin": -1.0}, {"tell_every": 0.0}]
)
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"give|above"):
        replace(HostSettings(), **wrong)
