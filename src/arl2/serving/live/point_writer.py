"""Points of a running stream on their way to the store: another thread writes them, in order, when they may be told.

A store that refuses costs the point and not the stream: the next one is tried as ever. Of each stream one point at most
is in that thread's queue, so that a slow store holds little memory and no stream waits behind many points of another.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from arl2.serving.live.history import History
from arl2.serving.live.objects import StoreError
from arl2.serving.live.wire import Point, UnknownStreamError
from arl2.streams.stream import Stream

logger = logging.getLogger(__name__)

_MOST_WAITING = 3  # each holds a stream's memory


class PointWriter:
    """Keeps forks until all viewers could have what comes before them, then writes them. Any thread may call.

    Args:
        history: takes the points.
        writer: one thread, which other streams use, too.
        failed: told, in that thread, what went wrong, unless it is the store that refuses.
        released: the last block that all viewers could have whole.
    """

    def __init__(
        self, history: History, writer: Executor, failed: Callable[[Exception], None], *, released: int
    ) -> None:
        self._history, self._writer, self._failed = history, writer, failed
        self._guard = threading.Condition()
        self._writing = False  # one is in the queue of the thread, or under way
        self.warning: str | None = None  # why the last point could not be kept
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
            self._submit()

    def wait(self) -> None:
        """Until what may be told is written, or was refused."""
        with self._guard:
            self._guard.wait_for(lambda: not self._writing)

    def close(self) -> None:
        """What waits is not written."""
        with self._guard:
            while self._waiting:
                self._waiting.popleft()[1].close()

    def _submit(self) -> None:
        """The guard is held."""
        if not self._writing and self._waiting and self._waiting[0][0].block <= self._released + 1:
            self._writer.submit(self._write, *self._waiting.popleft())
            self._writing = True

    def _write(self, point: Point, twin: Stream) -> None:
        try:
            with twin:
                self._history.add_point(point, twin.save_bytes("exact"))
            self.warning = None
        except UnknownStreamError:
            logger.info("stream %s was deleted before a point of it was kept", self._history.record.id)
        except StoreError as error:
            self.warning = f"Points cannot be kept at present: {error}"
            logger.warning("stream %s, point before block %d: %s", self._history.record.id, point.block, error)
        except Exception as error:
            self._failed(error)
        finally:
            with self._guard:
                self._writing = False
                self._submit()
                self._guard.notify_all()
