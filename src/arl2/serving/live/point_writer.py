"""Points of a running stream on their way to the store: another thread writes them, in order, when they may be told."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from arl2.serving.live.history import History
from arl2.serving.live.wire import Point
from arl2.streams.stream import Stream

_MOST_WAITING = 3  # each holds a stream's memory


class PointWriter:
    """Keeps forks until all viewers could have what comes before them, then writes them. Any thread may call.

    Args:
        history: takes the points.
        writer: one thread, which other streams use, too.
        failed: told, in that thread, what went wrong.
        released: the last block that all viewers could have whole.
    """

    def __init__(
        self, history: History, writer: Executor, failed: Callable[[Exception], None], *, released: int
    ) -> None:
        self._history, self._writer, self._failed = history, writer, failed
        self._guard = threading.Lock()
        self._waiting: deque[tuple[Point, Stream]] = deque()
        self._released = released

    def add(self, point: Point, twin: Stream) -> None:
        """A point and the fork that it is of; of many that wait the oldest is left out."""
        with self._guard:
            self._waiting.append((point, twin))
            while len(self._waiting) > _MOST_WAITING:
                self._waiting.popleft()[1].close()
        self.release(self._released)

    def release(self, block: int) -> None:
        """All viewers could have this block whole."""
        with self._guard:
            self._released = max(block, self._released)
            while self._waiting and self._waiting[0][0].block <= self._released + 1:
                self._writer.submit(self._write, *self._waiting.popleft())

    def wait(self) -> None:
        """Until what may be told is written."""
        self._writer.submit(lambda: None).result()

    def close(self) -> None:
        """What waits is not written."""
        with self._guard:
            while self._waiting:
                self._waiting.popleft()[1].close()

    def _write(self, point: Point, twin: Stream) -> None:
        try:
            with twin:
                self._history.add_point(point, twin.save_bytes("exact"))
        except Exception as error:
            self._failed(error)
