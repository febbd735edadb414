"""Which of several implementations is the fastest here: timed once for each device, shape and dtype, then remembered.

A timing is kept in the process and in a JSON file in the cache folder, so that another process chooses the same: the
implementations round differently, and a stream that is continued tomorrow should have the same bits. For the same
reason the first candidate stays where another is hardly faster: noise is not to choose.
"""

import functools
import json
import logging
import math
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.files.atomic import write_atomically
from arl2.files.cache import cache_folder
from arl2.files.plain import read_json

logger = logging.getLogger("arl2.kernels")

Seconds = dict[str, float]  # by candidate
Candidates = Mapping[str, Callable[[], object]]

FILE = "timings.json"
_FORMAT = "arl2 timings 1"
_LIMIT = 4_000_000  # bytes
_MARGIN = 1.15  # how much faster than the first candidate another must be
_REPEATS = 3


class Timings:
    """What was timed, in this process and in a file.

    Args:
        path: of the file; None: nothing is read or kept.
        clock: seconds, from any start.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._path = path
        self._clock = clock
        self._known: dict[str, Seconds] | None = None
        self._lock = threading.RLock()

    def fastest(self, key: str, candidates: Candidates, wait: Callable[[], object] = lambda: None) -> str:
        """Name of the fastest candidate; all are run and timed if this key is new.

        Args:
            key: operation, device, versions, dtype and shape: whatever another choice may follow from.
            candidates: by name, the one to prefer first. One that raises ``RuntimeError`` cannot do it and is left out.
            wait: for the device, until it has done what it was given.

        Raises:
            RuntimeError: no candidate can do it; it is the first one's error.
        """
        with self._lock:
            chosen = self.known(key, candidates)
            if chosen is None:
                seconds = self._keep(key, self._time(candidates, wait))
                chosen = _choice(seconds)
                told = ", ".join(f"{name} {1e3 * each:.2f} ms" for name, each in seconds.items())
                logger.info("%s: %s is taken (%s)", key, chosen, told)
        return chosen

    def known(self, key: str, candidates: Candidates) -> str | None:
        """What was chosen for this key among these candidates, or a part of them; None if it is new."""
        with self._lock:
            if self._known is None:
                self._known = self._read()
            seconds = self._known.get(key, {})
        return _choice(seconds) if seconds and seconds.keys() <= candidates.keys() else None

    def _time(self, candidates: Candidates, wait: Callable[[], object]) -> Seconds:
        seconds: Seconds = {}
        refused: RuntimeError | None = None
        for name, run in candidates.items():
            try:
                run()
                wait()
                times = []
                for _ in range(_REPEATS):
                    started = self._clock()
                    run()
                    wait()
                    times.append(self._clock() - started)
            except RuntimeError as error:
                logger.info("%s cannot do this: %s", name, str(error).partition("\n")[0])
                refused = refused or error
                continue
            seconds[name] = min(times)
        if not seconds:
            assert refused is not None
            raise refused
        return seconds

    def _keep(self, key: str, seconds: Seconds) -> Seconds:
        """What is now known of a key: another process may have timed the same meanwhile, and it was first."""
        assert self._known is not None
        if self._path is None:
            self._known[key] = seconds
            return seconds
        theirs = self._read()
        kept = theirs[key] if theirs.get(key, {}).keys() == seconds.keys() else seconds
        self._known = {**self._known, **theirs, key: kept}
        content = json.dumps({"format": _FORMAT, "seconds": self._known}, indent=1) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, content.encode())
        except (OSError, Arl2Error) as error:
            logger.info("timings are not kept in %s (%s)", self._path, error)
        return kept

    def _read(self) -> dict[str, Seconds]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            return _checked(read_json(self._path, limit=_LIMIT))
        except (OSError, ValueError, Arl2Error):
            logger.warning("%s is damaged and is not used; it is written again.", self._path)
            return {}


def _choice(seconds: Seconds) -> str:
    first, *_ = seconds
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds[first] > _MARGIN * seconds[best] else first


def _checked(content: dict[str, Any]) -> dict[str, Seconds]:
    """Raises ``ValueError`` where it is not what :class:`Timings` writes."""
    found = content.get("seconds")
    if content.get("format") != _FORMAT or not isinstance(found, dict):
        raise ValueError("another format")
    for seconds in found.values():
        if not isinstance(seconds, dict) or not seconds:
            raise ValueError("no times")
        for each in seconds.values():
            if isinstance(each, bool) or not isinstance(each, int | float) or not math.isfinite(each) or each < 0:
                raise ValueError("not a time")
    return found


_given: ContextVar[Timings | None] = ContextVar("arl2_timings", default=None)


def timings() -> Timings:
    """Those of this process, or of the ``with use_timings(...)`` around the call."""
    return _given.get() or _of_process()


@contextmanager
def use_timings(own: Timings) -> Iterator[None]:
    """Within the ``with``, choices are made by ``own``: tests give it a clock of their own."""
    token = _given.set(own)
    try:
        yield
    finally:
        _given.reset(token)


@functools.cache
def _of_process() -> Timings:
    try:
        return Timings(cache_folder() / FILE)
    except RuntimeError:  # a user without a home
        return Timings(None)


def can_be_timed(x: Tensor) -> bool:
    """Whether running something on ``x`` tells a time: a tensor with numbers, not fake or another library's."""
    return type(x) in (Tensor, torch.nn.Parameter)


def is_captured(x: Tensor) -> bool:
    """Whether what runs on ``x`` now goes into a CUDA graph."""
    return can_be_timed(x) and x.is_cuda and torch.cuda.is_current_stream_capturing()


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine_part(device: torch.device) -> str:
    """Name of a device and version of torch: what timings are valid for."""
    return f"{_device_name(device)}, torch {torch.__version__}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor_name()} ({capability}), threads {torch.get_num_threads()}"


@functools.cache
def processor_name() -> str:
    """Of the CPU, as the system says."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()
