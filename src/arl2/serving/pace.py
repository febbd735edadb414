"""Pacing: video frames go out no faster than they are shown."""

import time
from collections.abc import Callable

# Nothing waits longer than this for a stop, in seconds.
_SLICE = 0.05


def never() -> bool:
    """Nothing stops."""
    return False


class Pace:
    """A clock of video frames. Being late once does not make the next frames hurry.

    Args:
        fps: video frames a second.
        stopped: whether waiting has become pointless.
        now, sleep: the time in seconds, and how to let it pass.
    """

    def __init__(
        self,
        fps: int,
        *,
        stopped: Callable[[], bool] = never,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fps, self._stopped, self._now, self._sleep = fps, stopped, now, sleep
        self._due: float | None = None

    def wait(self, frames: int) -> None:
        """Return when ``frames`` more have been on screen for their time."""
        now = self._now()
        # A tenth of a second late is made up for; after more the clock starts again.
        if self._due is None or self._due < now - 0.1:
            self._due = now
        self._due += frames / self._fps
        while (left := self._due - self._now()) > 0 and not self._stopped():
            self._sleep(min(left, _SLICE))
