"""Pacing: video frames go out no faster than they are shown, or are made no earlier than they are needed."""

import threading
import time
from collections import deque
from collections.abc import Callable

_REMEMBERED = 8  # blocks
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


class ViewerBuffer:
    """The video that a viewer has and has not seen yet, by a clock: it is watched from the first frame on.

    A viewer that has seen everything waits, and continues with the frames that come then. Not for several threads at
    once; ``arl2.serving.keep_up.KeepUp`` calls it under its own lock.

    Args:
        fps: video frames a second.
        margin: seconds. None: a block begins when no more than the block before it is left to see. Otherwise it begins
            later where blocks are made faster than they are seen: when what is left lasts for the slowest of the last
            eight blocks and the margin. A new prompt shows sooner; a block that takes longer is seen as a stop.
        now: the time in seconds.
        wait: lets go of a condition until it is notified, or for so many seconds (None: however long it takes).
    """

    def __init__(
        self,
        fps: float,
        *,
        margin: float | None = None,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float | None], object] = threading.Condition.wait,
    ) -> None:
        self._fps, self._margin, self._now, self._wait = fps, margin, now, wait
        self._begun = 0.0
        self._making: deque[float] = deque(maxlen=_REMEMBERED)  # seconds of each block
        # When the last frame will have been seen; of a paused viewer, how many seconds are left instead.
        self._seen_at = 0.0
        self._left_at_pause: float | None = None

    @property
    def seconds(self) -> float:
        """Of video that is not seen yet."""
        return max(0.0, self._seen_at - self._now()) if self._left_at_pause is None else self._left_at_pause

    @property
    def paused(self) -> bool:
        """Whether the viewer looks at one frame."""
        return self._left_at_pause is not None

    def add(self, frames: int) -> None:
        """The viewer got so many frames."""
        if self._left_at_pause is None:
            self._seen_at = max(self._seen_at, self._now()) + frames / self._fps
        else:
            self._left_at_pause += frames / self._fps

    def pause(self) -> None:
        """Nothing more is seen until ``play``."""
        if self._left_at_pause is None:
            self._left_at_pause = self.seconds

    def play(self) -> None:
        """Watch on."""
        if self._left_at_pause is not None:
            self._seen_at, self._left_at_pause = self._now() + self._left_at_pause, None

    def seconds_early(self, frames: int) -> float | None:
        """How long the next block is to wait, after one of so many frames; 0: begin, None: the viewer pauses."""
        if self._left_at_pause is not None:
            return None
        lead = frames / self._fps
        if self._margin is not None and self._making:
            lead = min(lead, max(self._making) + self._margin)
        return max(0.0, self.seconds - lead)

    def block_begins(self) -> None:
        """A block is being made from now on."""
        self._begun = self._now()

    def block_is_made(self) -> None:
        """It could be handed to the viewer."""
        self._making.append(self._now() - self._begun)

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        """Let go of ``changed`` until something happens, or for so many seconds."""
        self._wait(changed, seconds)
