"""Times of a computation: warm-up apart, every run kept, the median told with its spread."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Lap(NamedTuple):
    """One run: the seconds that count, and those of the wall clock."""

    seconds: float
    clock: float

    def since(self, before: "Lap") -> "Lap":
        """From ``before`` to this."""
        return Lap(self.seconds - before.seconds, self.clock - before.clock)


@dataclass(frozen=True)
class Timing:
    """All runs of one computation.

    Attributes:
        laps: in the order in which they ran.
    """

    laps: tuple[Lap, ...]

    @property
    def runs(self) -> list[float]:
        """Seconds of each run."""
        return [lap.seconds for lap in self.laps]

    @property
    def median(self) -> float:
        """Of the runs."""
        return statistics.median(self.runs)

    def to_mapping(self) -> dict[str, Any]:
        """As a result stores it."""
        return {
            "median": self.median,
            "smallest": min(self.runs),
            "largest": max(self.runs),
            "runs": self.runs,
            "clock_median": statistics.median(lap.clock for lap in self.laps),
        }


class Stopwatch:
    """Times runs on a device.

    On one thread of a CPU it is the processor's time that counts, which other processes on the machine do not add to;
    everywhere else the wall clock, after the device has finished.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    @property
    def what(self) -> str:
        """What is counted, for people."""
        return "processor time of one thread" if self._by_processor else "wall-clock time"

    def now(self) -> Lap:
        """The time by both clocks, once the device has finished; the difference of two is a run's."""
        self._wait()
        clock = time.perf_counter()
        return Lap(time.process_time() if self._by_processor else clock, clock)

    def time(self, run: Callable[[], object]) -> Lap:
        """Run once."""
        before = self.now()
        run()
        return self.now().since(before)

    def timing(self, run: Callable[[], object], *, repeats: int, warmup: int = 1) -> Timing:
        """The median of some runs after some that are not counted."""
        for _ in range(warmup):
            run()
        return Timing(tuple(self.time(run) for _ in range(repeats)))

    def interleaved(self, runs: Mapping[str, Callable[[], object]], *, repeats: int) -> Iterator[tuple[str, Lap]]:
        """Runs that are compared, in turns, so that a machine that slows down slows all of them; after one of each."""
        for run in runs.values():
            run()
        for _ in range(repeats):
            for name, run in runs.items():
                yield name, self.time(run)

    @property
    def _by_processor(self) -> bool:
        return self.device.type == "cpu" and torch.get_num_threads() == 1

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "xpu":
            torch.xpu.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
