"""What is kept of a stream does not grow with its age, and can still be continued from."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from arl2.serving.live.history import History, new_point
from arl2.serving.live.store import StreamRecord, StreamStore
from arl2.serving.live.wire import Command, StreamRequest, UnknownStreamError

KEPT_POINTS = 4
RECORD = StreamRecord(
    id="old",
    created=1.0,
    request=StreamRequest(prompt="prompt 0", seed=3),
    parent=None,
    model_hash="1234",
    width=64,
    height=64,
    fps=16,
)


@pytest.fixture
def store() -> Iterator[StreamStore]:
    """In memory, as a folder writes a thousand commands to the disk one by one."""
    place = StreamStore(f"memory://history-{uuid4().hex}")
    yield place
    place.close()


def live(history: History, commands: range) -> None:
    """A prompt before every second block, a point before every fourth."""
    for number in commands:
        block = 2 * number
        entry = history.note(Command(action="prompt", prompt=f"prompt {number}"), block)
        assert entry.number == number
        if block % 4 == 0:
            point = new_point(block=block, frame=12 * block, index=block, prompt=f"prompt {number}", entry=number)
            history.add_point(point, b"snapshot")


def test_an_old_stream_is_kept_in_as_little_as_a_young_one(store):
    store.write(RECORD)
    history = History(store, RECORD, keep=KEPT_POINTS)
    most = 0
    for first in range(1, 1001, 50):
        live(history, range(first, first + 50))
        most = max(most, len(store.entries("old")))
    assert most <= 320
    again = History.read(store, store.read("old"), keep=KEPT_POINTS)
    for one in (history, again):
        assert [point.block for point in one.points] == [1988, 1992, 1996, 2000]
        assert one.prompts[-1] == (2000, "prompt 1000")
        assert 256 <= len(one.prompts) <= 600
        assert [block for block, _ in one.prompts] == sorted({block for block, _ in one.prompts})
    assert again.prompts == history.prompts
    # From a point on, nothing is missing; from the very beginning, too much is.
    (start,) = [one for one in again.starts(1991, most_again=64) if one.point.block == 1992]
    assert [entry.command.prompt for entry in start.entries] == [f"prompt {n}" for n in (997, 998, 999, 1000)]
    assert all(one.point is not None for one in again.starts(None, most_again=64))
    live(again, range(1001, 1003))  # numbers run on


def test_a_young_stream_can_begin_again_without_any_point(store):
    store.write(RECORD)
    history = History(store, RECORD, keep=KEPT_POINTS)
    live(history, range(1, 21))
    last = History.read(store, store.read("old"), keep=KEPT_POINTS).starts(None, most_again=64)[-1]
    assert last.point is None
    assert [entry.number for entry in last.entries] == list(range(1, 21))


def test_commands_that_were_forgotten_by_halves_are_no_damage(store):
    """A kill between two of them leaves the newer ones, whole."""
    store.write(RECORD)
    history = History(store, RECORD, keep=KEPT_POINTS)
    live(history, range(1, 21))
    store.forget("old", 7)
    again = History.read(store, store.read("old"), keep=KEPT_POINTS)
    assert [entry.number for entry in store.entries("old")] == list(range(8, 21))
    assert again.prompts[-1] == (40, "prompt 20")
    assert [one.point.block for one in again.starts(None, most_again=64)] == [40, 36, 32, 28]


def blocks_of(history: History, after: int | None) -> list[int | None]:
    return [None if one.point is None else one.point.block for one in history.starts(after, most_again=8)]


def keep_point(history: History, block: int, entry: int = 0) -> None:
    history.add_point(new_point(block=block, frame=12 * block, index=block, prompt="", entry=entry), b"snapshot")


def test_a_viewer_of_a_young_stream_continues_from_the_beginning_rather_than_miss_blocks(store):
    store.write(RECORD)
    history = History(store, RECORD, keep=KEPT_POINTS)
    for block in (4, 8):
        keep_point(history, block)
    assert blocks_of(history, 2) == [None, 4, 8]
    # Of a few blocks those before it are made again, too, for viewers who have seen a little less.
    assert blocks_of(history, 3) == [None, 4, 8]
    assert blocks_of(history, 8)[:2] == [4, 8]
    assert blocks_of(history, None) == [8, 4, None]
    for block in (12, 16, 20):
        keep_point(history, block)
    # From so far away nothing is made again, unless there is nothing else.
    assert blocks_of(history, 20)[0] == 16
    assert blocks_of(history, 12) == [8, 12, 16, 20, None]
    assert blocks_of(history, 10) == [20, 16, 12, 8, None]


def test_a_point_that_is_too_new_is_the_last_resort(store):
    """Older ones need a point to which the stream was rewound, and which is gone."""
    store.write(RECORD)
    history = History(store, RECORD, keep=3)
    for block in (4, 8, 12):
        keep_point(history, block)
    entry = history.note(Command(action="rewind", block=4), 14)
    keep_point(history, 14, entry.number)
    assert blocks_of(history, 12) == [14]


def test_a_record_that_was_deleted_is_not_written_again(store):
    store.write(RECORD)
    history = History(store, RECORD, keep=3)
    store.delete("old")
    with pytest.raises(UnknownStreamError):
        history.change(paused=True)
    history.end(state="ended")
    assert history.record.state == "ended"
    assert store.records() == []
