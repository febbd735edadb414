"""Streams of one model take turns: first come, first served, so that none starves and eight cost eight times one."""

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """Lets one thread in at a time, in the order in which they came; not re-entrant.

    A plain lock goes to whichever thread the system wakes first, often to the one that had it last.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """Threads in line."""
        return len(self._waiting)

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()  # handed over: nobody can come in between
            else:
                self._held = False


class Turns:
    """Of one model: a turn is a block. Denoising and decoding have a line each, so that they go on side by side."""

    def __init__(self) -> None:
        self.denoise = FairLock()
        self.decode = FairLock()
