"""The store of live streams: what is written is read again, and what is damaged costs no more than itself."""

import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arl2.errors import ConfigError
from arl2.serving.live.objects import StoreError
from arl2.serving.live.store import JournalEntry, StreamRecord, StreamStore
from arl2.serving.live.wire import Command, Point, StreamRequest, UnknownStreamError

RECORD = StreamRecord(
    id="a",
    created=10.0,
    request=StreamRequest(prompt="a red circle", seed=3, options={"window": 3, "steps": [1000, 500]}),
    model_hash="f" * 64,
    width=64,
    height=64,
    fps=16,
)


def point(block: int) -> Point:
    return Point(block=block, frame=12 * block, index=block, prompt="a red circle", made=11.5)


def entry(number: int, block: int) -> JournalEntry:
    return JournalEntry(number, block, Command(action="prompt", key=f"k{number}", prompt="a blue square"))


@pytest.fixture(params=["folder", "address"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "deep" / "store")
    else:
        import fsspec

        address = f"memory://{tmp_path.name}"  # one memory for the whole process
        yield address
        system = fsspec.filesystem("memory")
        if system.exists(address):
            system.rm(address, recursive=True)


@pytest.fixture
def store(place: str) -> Iterator[StreamStore]:
    store = StreamStore(place)
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[StreamStore, Path]]:
    """A store in a folder with stream "a", and the stream's folder."""
    store = StreamStore(tmp_path)
    store.write(RECORD)
    yield store, tmp_path / "streams" / "a"
    store.close()


def test_all_that_is_kept_outlives_the_server(place: str, store: StreamStore) -> None:
    store.write(RECORD)
    store.write(replace(RECORD, id="0-fork", created=5.0, parent="a", prompts=((0, "red"), (4, "blue")), block=4))
    for block in (4, 8, 12):
        store.add_point("a", point(block), b"snapshot %d" % block)
    for number in range(1, 5):
        assert store.next_number("a") == number
        store.append("a", entry(number, 3 * number))
    store.refuse("a", 2, "no such point")
    store.write(replace(RECORD, paused=True))
    store.close()

    again = StreamStore(place)
    assert [one.id for one in again.records()] == ["0-fork", "a"]
    assert again.read("a") == replace(RECORD, paused=True)
    assert again.read("0-fork").prompts == ((0, "red"), (4, "blue"))
    assert again.points("a") == [point(4), point(8), point(12)]
    assert again.point_bytes("a", 8) == b"snapshot 8"
    assert again.newest_point("a") == (point(12), b"snapshot 12")
    assert again.newest_point("a", 11) == (point(8), b"snapshot 8")
    assert again.newest_point("a", 3) is None
    kept = [entry(number, 3 * number) for number in range(1, 5)]
    kept[1] = replace(kept[1], refused="no such point")
    assert again.entries("a") == kept
    assert again.entries("a", since=9) == kept[2:]
    assert again.next_number("a") == 5

    again.prune("a", 2)
    assert again.points("a") == [point(8), point(12)]
    with pytest.raises(UnknownStreamError, match="No point before block 4 is kept; kept: 8, 12"):
        again.point_bytes("a", 4)
    again.delete("a")
    assert [one.id for one in again.records()] == ["0-fork"]
    for act in (
        lambda: again.read("a"),
        lambda: again.delete("a"),
        lambda: again.points("a"),
        lambda: again.add_point("a", point(1), b""),
        lambda: again.append("a", entry(5, 20)),
    ):
        with pytest.raises(UnknownStreamError, match="There is no stream 'a'"):
            act()
    again.close()


numbers = st.integers(0, 2**63 - 1)
text = st.text(max_size=40)
seconds = st.floats(0, 1e12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    # Plain values: what checks the annotations of the records uses random numbers, which strategies may not.
    record=st.fixed_dictionaries(
        {
            "id": st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True),
            "created": seconds,
            "model_hash": text,
            "width": numbers,
            "height": numbers,
            "fps": numbers,
            "parent": st.none() | text,
            "paused": st.booleans(),
            "prompts": st.lists(st.tuples(numbers, text), max_size=3).map(tuple),
            "state": st.sampled_from([None, "ended", "failed"]),
            "error": st.none() | text,
        }
    ),
    asked=st.fixed_dictionaries(
        {
            "prompt": text,
            "seed": st.none() | st.integers(),
            "options": st.dictionaries(
                text, st.none() | st.booleans() | st.integers() | st.lists(text, max_size=2), max_size=2
            ),
            "blocks": st.none() | numbers,
            "name": text,
        }
    ),
    at=st.fixed_dictionaries({"block": numbers, "frame": numbers, "index": numbers, "prompt": text, "made": seconds}),
    command=st.fixed_dictionaries(
        {
            "action": st.sampled_from(["prompt", "pause", "rewind", "fork"]),
            "key": text,
            "prompt": st.none() | text,
            "block": st.none() | numbers,
            "seed": st.none() | st.integers(),
        }
    ),
    data=st.binary(max_size=200),
)
def test_anything_that_is_accepted_is_read_again(
    store: StreamStore, record: dict, asked: dict, at: dict, command: dict, data: bytes
) -> None:
    kept, point = StreamRecord(request=StreamRequest(**asked), **record), Point(**at)
    entry = JournalEntry(1, point.block, Command(**command))
    store.write(kept)
    assert store.read(kept.id) == kept
    store.add_point(kept.id, point, data)
    assert (store.points(kept.id), store.point_bytes(kept.id, point.block)) == ([point], data)
    store.append(kept.id, entry)
    assert store.entries(kept.id) == [entry]
    store.delete(kept.id)
    assert store.records() == []


@pytest.mark.parametrize("id", ["", "A", "..", "../x", "a/b", "a.json", "a" * 65, "ä", "a\n", "%2e", "a\\b"])
def test_names_never_become_paths(store: StreamStore, id: str) -> None:
    with pytest.raises(ConfigError, match="small letters, digits and hyphens"):
        store.write(replace(RECORD, id=id))
    with pytest.raises(UnknownStreamError):
        store.read(id)
    with pytest.raises(UnknownStreamError):
        store.delete(id)
    assert store.records() == []


@pytest.mark.parametrize(
    "changed",
    [
        {"width": -1},
        {"created": float("nan")},
        {"error": "half a character \ud800"},
        {"request": StreamRequest(prompt="a", options={"x": float("inf")})},
        {"request": StreamRequest(prompt="a", options={"x": object()})},
        {"request": StreamRequest(prompt="a" * 5_000_000)},
    ],
    ids=["negative", "NaN", "half a character", "infinity", "no plain value", "huge"],
)
def test_what_could_not_be_read_again_is_not_written(store: StreamStore, changed: dict) -> None:
    with pytest.raises(ConfigError, match="This cannot be kept"):
        store.write(replace(RECORD, **changed))
    assert store.records() == []


def test_a_number_of_the_journal_is_given_once(store: StreamStore) -> None:
    store.write(RECORD)
    store.append("a", entry(1, 0))
    with pytest.raises(StoreError, match=r"Command 1 of .* is there already; the next one is 2"):
        store.append("a", entry(1, 5))
    assert store.entries("a") == [entry(1, 0)]


def test_a_point_written_once_more_gives_way_whole(store: StreamStore) -> None:
    store.write(RECORD)
    store.add_point("a", point(4), b"old")
    store.add_point("a", replace(point(4), index=1), b"new one")
    assert store.newest_point("a") == (replace(point(4), index=1), b"new one")
    store.prune("a", 5)
    assert store.point_bytes("a", 4) == b"new one"


def test_a_killed_writer_leaves_what_was_there(folder: tuple[StreamStore, Path], tmp_path: Path) -> None:
    store, stream = folder
    store.add_point("a", point(4), b"four")
    store.add_point("a", point(8), b"eight")
    store.append("a", entry(1, 2))
    # Killed between the bytes of a point and its record, and in the middle of a record, a command and a snapshot.
    (stream / "points" / "00000012.0123456789abcdef.arl2").write_bytes(b"twelve")
    for name in ("stream.json", "points/00000012.json", "journal/00000002.json", "points/00000012.aaaabbbb.arl2"):
        path = stream / name
        (path.parent / f".{path.name}.0a1b2c3d.part").write_bytes(b'{"half')
    # Killed while a stream was deleted.
    (tmp_path / "streams" / "b" / "points").mkdir(parents=True)
    (tmp_path / "streams" / "b" / "points" / "00000004.json").write_bytes(b"{}")
    # Somebody else's.
    (tmp_path / "streams" / "holiday").mkdir()
    (tmp_path / "streams" / "holiday" / "photo.jpg").write_bytes(b"sea")
    store.close()

    again = StreamStore(tmp_path)
    assert again.records() == [RECORD]
    assert again.points("a") == [point(4), point(8)]
    assert again.entries("a") == [entry(1, 2)]
    again.prune("a", 9)
    again.close()
    assert not (tmp_path / "streams" / "b").exists()
    assert (tmp_path / "streams" / "holiday" / "photo.jpg").exists()
    left = sorted(str(path.relative_to(stream)) for path in stream.rglob("*") if path.is_file())
    assert len([name for name in left if name.endswith(".arl2")]) == 2
    assert not [name for name in left if name.endswith(".part")]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def swap(path: Path) -> None:
    path.write_bytes(b'{"point": 3}')


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_point_costs_an_older_one(
    folder: tuple[StreamStore, Path], caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    store, stream = folder
    for block in (4, 8):
        store.add_point("a", point(block), b"bytes of %d" % block)
    (data,) = (stream / "points").glob("00000008.*.arl2")
    damage(data)
    with caplog.at_level(logging.WARNING):
        assert store.newest_point("a") == (point(4), b"bytes of 4")
    assert "00000008" in caplog.text
    with pytest.raises(StoreError, match="00000008"):
        store.point_bytes("a", 8)
    store.add_point("a", point(8), b"bytes of 8")
    assert store.newest_point("a") == (point(8), b"bytes of 8")


@pytest.mark.parametrize("damage", [cut, swap, lambda path: path.write_bytes(b"[" * 10_000)])
def test_a_damaged_record_of_a_point_is_left_out(
    folder: tuple[StreamStore, Path], caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    store, stream = folder
    for block in (4, 8):
        store.add_point("a", point(block), b"x")
    damage(stream / "points" / "00000008.json")
    with caplog.at_level(logging.WARNING):
        assert store.points("a") == [point(4)]
    assert "00000008.json" in caplog.text
    store.prune("a", 1)
    assert store.points("a") == []  # the damaged one was the newest: it counts as one


def test_a_point_that_names_other_bytes_is_damaged(folder: tuple[StreamStore, Path]) -> None:
    store, stream = folder
    store.add_point("a", point(4), b"x")
    record = stream / "points" / "00000004.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"data": "../stream.json"}))
    assert store.points("a") == []
    with pytest.raises(StoreError, match="damaged"):
        store.point_bytes("a", 4)


def test_damage_in_a_journal(folder: tuple[StreamStore, Path], caplog: pytest.LogCaptureFixture) -> None:
    store, stream = folder
    for number in range(1, 6):
        store.append("a", entry(number, 2 * number))
    # The last: it was never applied.
    cut(stream / "journal" / "00000005.json")
    with caplog.at_level(logging.WARNING):
        assert store.entries("a", since=4) == [entry(2, 4), entry(3, 6), entry(4, 8)]
    assert "00000005.json" in caplog.text
    assert store.next_number("a") == 6
    # One between others: nothing before it can be replayed, all after it can.
    cut(stream / "journal" / "00000002.json")
    with pytest.raises(StoreError, match=r"00000002\.json"):
        store.entries("a", since=4)
    (stream / "journal" / "00000002.json").unlink()
    with pytest.raises(StoreError, match=r"00000002\.json"):
        store.entries("a", since=1)
    assert store.entries("a", since=7) == [entry(4, 8)]
    (stream / "journal" / "00000001.json").unlink()
    (stream / "journal" / "notes.txt").write_text("mine")
    (stream / "journal" / "9999999999999999999.json").write_text("{}")
    assert store.next_number("a") == 6


@pytest.mark.parametrize("damage", [cut, swap, lambda path: path.write_bytes(b"\xff\xfe")])
def test_a_damaged_stream_is_listed_as_failed(
    folder: tuple[StreamStore, Path], damage: Callable[[Path], object]
) -> None:
    store, stream = folder
    store.write(replace(RECORD, id="b"))
    damage(stream / "stream.json")
    failed, whole = store.records()
    assert (failed.id, failed.state, whole.id, whole.state) == ("a", "failed", "b", None)
    assert failed.error is not None
    assert "streams/a/stream.json" in failed.error
    store.delete("a")
    assert [one.id for one in store.records()] == ["b"]


def test_a_stream_of_another_name_is_damaged(folder: tuple[StreamStore, Path]) -> None:
    store, stream = folder
    stream.rename(stream.with_name("c"))
    with pytest.raises(StoreError, match="it is of 'a'"):
        store.read("c")


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    folder: tuple[StreamStore, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stream = folder
    store.add_point("a", point(4), b"four")
    before = {path: path.read_bytes() for path in stream.rglob("*") if path.is_file()}

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        for act in (
            lambda: store.write(replace(RECORD, paused=True)),
            lambda: store.add_point("a", point(4), b"other"),
            lambda: store.add_point("a", point(8), b"eight"),
            lambda: store.append("a", entry(1, 2)),
        ):
            with pytest.raises(StoreError, match="No space left on device") as refused:
                act()
            assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in stream.rglob("*") if path.is_file()} == before
    store.append("a", entry(1, 2))
    assert store.entries("a") == [entry(1, 2)]


def test_data_is_durable_before_the_record_that_names_it(
    folder: tuple[StreamStore, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = folder
    synced: list[str] = []
    sync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    store.add_point("a", point(4), b"four")
    data, record = (next(i for i, name in enumerate(synced) if end in name) for end in (".arl2.", ".json."))
    assert data < record
    assert synced[data + 1] == synced[record + 1] == "points"  # the names, too


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("nothing-of-that-kind://x", ConfigError),
        ("/proc/no/such/folder", StoreError),
        ("/dev/null", StoreError),
        ("/dev/null/x", StoreError),
    ],
)
def test_places_that_cannot_be_used(place: str, error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        StreamStore(place)
    assert "\n" not in str(refused.value)
    assert place in str(refused.value)


def test_addresses_of_this_machine_are_folders(tmp_path: Path) -> None:
    store = StreamStore(f"file://{tmp_path}/s")
    store.write(RECORD)
    store.close()
    assert (tmp_path / "s" / "streams" / "a" / "stream.json").is_file()


def test_many_threads(store: StreamStore) -> None:
    for name in "ab":
        store.write(replace(RECORD, id=name))
    failures: list[BaseException] = []

    def work(name: str, part: int) -> None:
        try:
            for step in range(1, 9):
                store.add_point(name, point(10 * step + part), b"%d" % step)
                store.prune(name, 4)
                if part == 0:
                    store.append(name, entry(step, step))
                store.write(replace(RECORD, id=name, paused=bool(step % 2)))
                assert store.records()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name, part)) for name in "ab" for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for name in "ab":
        assert len(store.points(name)) == 4
        assert [one.number for one in store.entries(name)] == list(range(1, 9))
