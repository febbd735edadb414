"""Who may use a store: one server alone, or the processes of one cluster."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from arl2.serving.live import objects, place_lock
from arl2.serving.live.objects import StoreError
from arl2.serving.live.store import JournalEntry, StreamRecord, StreamStore
from arl2.serving.live.wire import Command, Point, StreamRequest

RECORD = StreamRecord(
    id="a",
    created=10.0,
    request=StreamRequest(prompt="a red circle", seed=3),
    model_hash="f" * 64,
    width=64,
    height=64,
    fps=16,
)
FOUR = Point(block=4, frame=48, index=4, prompt="a red circle", made=11.5)


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder, and an address."""
    if request.param == "folder":
        yield str(tmp_path / "store")
        return
    address = f"memory://{tmp_path.name}"
    yield address
    objects.open_objects(address).remove("")


def test_two_servers_on_one_store(place: str) -> None:
    store = StreamStore(place)
    with pytest.raises(StoreError, match=rf"in use by process {os.getpid()} on .*; end that server, or give this one"):
        StreamStore(place)
    with pytest.raises(StoreError, match="in use by process"):
        StreamStore(place, shared=True)
    store.write(RECORD)
    store.close()
    store.close()
    with contextlib.ExitStack() as held:
        sharing = [held.enter_context(contextlib.closing(StreamStore(place, shared=True))) for _ in range(3)]
        assert [one.read("a") for one in sharing] == [RECORD] * 3
        sharing[0].close()
        sharing[1].write(replace(RECORD, paused=True))
        with pytest.raises(StoreError, match=rf"in use by process {os.getpid()} on "):
            StreamStore(place)
    StreamStore(place).close()


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_an_address_that_was_taken_is_not_written_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, shared: bool
) -> None:
    address = f"memory://{tmp_path.name}"
    store = StreamStore(address, shared=shared)
    store.write(RECORD)
    store.add_point("a", FOUR, b"four")
    # It stood still for two minutes, as a machine does that sleeps; another server found its note too old.
    monkeypatch.setattr(place_lock, "_held_here", set())
    monkeypatch.setattr(place_lock, "_lives", lambda holder: False)
    other = StreamStore(address)
    monkeypatch.undo()
    monkeypatch.setattr(place_lock.time, "time", partial(lambda now: now() + 120, time.time))
    monkeypatch.setattr(place_lock, "_lives", lambda holder: True)
    writes: list[Callable[[], object]] = [
        lambda: store.write(replace(RECORD, paused=True)),
        lambda: store.append("a", JournalEntry(1, 0, Command(action="pause"))),
        lambda: store.add_point("a", replace(FOUR, block=8), b"eight"),
        lambda: store.delete("a"),
        lambda: store.prune("a", 0),
    ]
    for write in writes:
        with pytest.raises(StoreError, match=r"Another server has taken the store .* end one of the two"):
            write()
    assert caplog.text.count("has taken the store") == 1
    assert store.points("a") == [FOUR]
    store.close()
    assert other.records() == [RECORD]
    other.write(replace(RECORD, paused=True))
    other.close()
    objects.open_objects(address).remove("")


def test_what_killed_sharers_have_left_at_an_address_is_removed(tmp_path: Path) -> None:
    address = f"memory://{tmp_path.name}"
    store = StreamStore(address, shared=True)
    kept = objects.open_objects(address)
    (name,) = kept.sizes(place_lock.SHARING)
    left = json.loads(kept.read(f"{place_lock.SHARING}/{name}", limit=1000))
    store.close()
    assert not kept.sizes(place_lock.SHARING)
    for number, changed in enumerate([{"process": os.getpid()}, {"host": "elsewhere", "renewed": 0.0}]):
        kept.write(f"{place_lock.SHARING}/{number}.json", json.dumps({**left, **changed}).encode())
    StreamStore(address).close()
    assert not kept.sizes(place_lock.SHARING)
    kept.write(f"{place_lock.SHARING}/3.json", json.dumps({**left, "host": "elsewhere"}).encode())
    with pytest.raises(StoreError, match="on elsewhere"):
        StreamStore(address)
    assert not kept.holds(place_lock.NAME)
    StreamStore(address, shared=True).close()
    kept.remove("")


def test_a_folder_that_another_process_has(tmp_path: Path) -> None:
    program = (
        "import sys; from arl2.serving.live.store import StreamStore\n"
        f"store = StreamStore({str(tmp_path)!r}); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match=f"in use by process {other.pid} on "):
            StreamStore(tmp_path)
        other.kill()
        other.wait()
    StreamStore(tmp_path).close()


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({"process": 2**22 + 1}, True),  # beyond the largest number that Linux gives
        ({"process": os.getpid()}, True),
        ({"process": os.getppid()}, False),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "renewed": 0.0}, True),
        ({"renewed": "half"}, True),
    ],
)
def test_an_address_that_a_killed_server_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict, taken: bool
) -> None:
    address = f"memory://{tmp_path.name}"
    store = StreamStore(address)
    kept = objects.open_objects(address)
    left = json.loads(kept.read(place_lock.NAME, limit=1000))
    store.close()
    assert not kept.holds(place_lock.NAME)
    kept.write(place_lock.NAME, json.dumps({**left, **changed}).encode())
    if taken:
        StreamStore(address).close()
    else:
        with pytest.raises(StoreError, match="in use by process"):
            StreamStore(address)
    if kept.holds(""):
        kept.remove("")
