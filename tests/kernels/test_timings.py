"""Which implementation is taken: timed once by a clock that the test turns, remembered in the process and on disk."""

import json
import logging
from collections.abc import Callable

import pytest

from arl2.kernels.timings import Timings


class Clock:
    """Stands still until something is run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, **seconds: float) -> dict[str, Callable[[], None]]:
        """Candidates that take so long."""

        def run(name: str) -> None:
            self.runs.append(name)
            self.now += seconds[name]

        return {name: lambda name=name: run(name) for name in seconds}


def refuses() -> None:
    raise RuntimeError("No available kernel.\nAborting.")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_fastest_is_taken_and_timed_once(clock):
    timings = Timings(None, clock)
    ways = clock.takes(flash=2.0, cudnn=1.0, efficient=3.0)
    assert timings.fastest("a", ways) == "cudnn"
    runs = len(clock.runs)
    assert timings.fastest("a", ways) == timings.known("a", ways) == "cudnn"
    assert len(clock.runs) == runs
    assert timings.known("b", ways) is None


@pytest.mark.parametrize(("second", "chosen"), [(0.95, "own"), (0.80, "float32")])
def test_the_first_one_stays_where_another_is_hardly_faster(clock, second, chosen):
    assert Timings(None, clock).fastest("a", clock.takes(own=1.0, float32=second)) == chosen


def test_the_first_run_and_the_slow_ones_do_not_count(clock):
    seconds = iter([50.0, 9.0, 1.0, 9.0])

    def warming_up() -> None:
        clock.now += next(seconds)

    assert Timings(None, clock).fastest("a", {**clock.takes(own=2.0), "other": warming_up}) == "other"


def test_what_the_device_has_still_to_do_counts(clock):
    waiting = iter([0.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0])

    def wait() -> None:
        clock.now += next(waiting)

    assert Timings(None, clock).fastest("a", clock.takes(own=1.0, other=2.0), wait) == "other"


def test_what_cannot_do_it_is_left_out(clock):
    assert Timings(None, clock).fastest("a", {"flash": refuses, **clock.takes(efficient=1.0)}) == "efficient"
    with pytest.raises(RuntimeError, match="No available kernel"):
        Timings(None, clock).fastest("b", {"flash": refuses, "cudnn": refuses})


def test_another_process_chooses_the_same_without_running_anything(clock, tmp_path):
    path = tmp_path / "cache" / "timings.json"
    ways = clock.takes(own=2.0, float32=1.0)
    assert Timings(path, clock).fastest("a", ways) == "float32"
    runs = len(clock.runs)
    other = Timings(path, clock)
    assert other.fastest("a", clock.takes(own=1.0, float32=2.0)) == "float32"
    assert len(clock.runs) == runs
    assert other.fastest("b", ways) == "float32"
    assert set(json.loads(path.read_text())["seconds"]) == {"a", "b"}


def test_what_two_processes_time_at_once_is_what_the_first_one_found(clock, tmp_path):
    path = tmp_path / "timings.json"
    one, two = Timings(path, clock), Timings(path, clock)
    assert two.known("a", {}) is None  # has read the file by now
    assert one.fastest("a", clock.takes(own=2.0, float32=1.0)) == "float32"
    assert one.fastest("b", clock.takes(own=2.0, float32=1.0)) == "float32"
    assert two.fastest("a", clock.takes(own=1.0, float32=2.0)) == "float32"
    assert two.known("b", clock.takes(own=1.0, float32=2.0)) == "float32"


def test_a_candidate_that_is_no_more_is_timed_again(clock, tmp_path):
    path = tmp_path / "timings.json"
    Timings(path, clock).fastest("a", clock.takes(flash=2.0, gone=1.0))
    assert Timings(path, clock).fastest("a", clock.takes(flash=1.0, cudnn=5.0)) == "flash"


DAMAGED = [
    b"",
    b"[]",
    b'{"format": "arl2 timings 1"}',
    b'{"format": "arl2 timings 2", "seconds": {}}',
    b'{"format": "arl2 timings 1", "seconds": {"a": {}}}',
    b'{"format": "arl2 timings 1", "seconds": {"a": {"own": -1}}}',
    b'{"format": "arl2 timings 1", "seconds": {"a": {"own": "fast"}}}',
    b'{"format": "arl2 timings 1", "seconds": {"a": {"own": NaN}}}',
    b'{"format": "arl2 timings 1", "seconds": ' + b"[" * 5000,
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_said_and_written_again(clock, tmp_path, caplog, content):
    path = tmp_path / "timings.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert Timings(path, clock).fastest("a", clock.takes(own=2.0, float32=1.0)) == "float32"
    assert "timings.json is damaged" in caplog.text
    assert json.loads(path.read_text())["seconds"]["a"] == {"own": 2.0, "float32": 1.0}


def test_a_folder_that_cannot_be_written_stops_nothing(clock, tmp_path):
    (tmp_path / "file").write_text("")
    timings = Timings(tmp_path / "file" / "timings.json", clock)
    assert timings.fastest("a", clock.takes(own=2.0, float32=1.0)) == "float32"
    assert timings.known("a", clock.takes(own=1.0, float32=1.0)) == "float32"
