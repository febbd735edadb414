"""When frames are given to viewers: one by one at their rate, or as they are made; a pause stops them at once."""

import threading
import time
from collections.abc import Callable

_FORGIVEN = 0.1  # seconds late that are made up for; after more the clock starts again


class Release:
    """A clock of frames.

    Args:
        fps: frames a second; None: as they are made.
        now: the time in seconds.
        wait: lets go of a condition until it is notified, or for so many seconds.
    """

    def __init__(
        self,
        fps: int | None,
        *,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float | None], object] = threading.Condition.wait,
    ) -> None:
        self._step, self._now, self._wait = None if fps is None else 1 / fps, now, wait
        self._changed = threading.Condition()
        self._due: float | None = None
        self._left: float | None = None  # of a pause: seconds until the frame that waits
        self._hurried = self._closed = False

    def frame(self) -> bool:
        """Return when the next frame is due: True, or False once it is closed."""
        with self._changed:
            while not self._closed:
                if self._hurried:
                    return True
                if self._left is not None:
                    self._wait(self._changed, None)
                    continue
                if self._step is None:
                    return True
                now = self._now()
                if self._due is None or self._due < now - _FORGIVEN:
                    self._due = now
                if self._due <= now:
                    self._due += self._step
                    return True
                self._wait(self._changed, self._due - now)
            return False

    def pause(self, paused: bool = True) -> None:
        """Give out nothing until ``pause(False)``; then the frame that waits comes as late as it would have come."""
        with self._changed:
            if paused and self._left is None:
                self._left = 0.0 if self._due is None else max(0.0, self._due - self._now())
            elif not paused and self._left is not None:
                self._due, self._left = self._now() + self._left, None
            self._changed.notify_all()

    def hurry(self) -> None:
        """From now on nothing waits, in a pause neither: the stream ends, and what is made is given out."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def close(self) -> None:
        """Whoever waits leaves."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
