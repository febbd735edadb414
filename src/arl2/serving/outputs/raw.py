"""A stream as raw y4m: to a file, to a named pipe, or to standard output.

A reader that is slow is waited for. One that goes away ends the output, and says so. When the person wants to stop, a
reader that takes nothing any more is given up after two seconds.
"""

import errno
import os
import select
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from arl2.serving.pace import never
from arl2.video.formats import STANDARD_OUTPUT, VideoFileError, is_pipe
from arl2.video.pixels import Frames
from arl2.video.writing import VideoWriter
from arl2.video.y4m import ByteSink, Y4mVideo

_PATIENCE = 2.0  # seconds
_LOOK = 0.1  # seconds between looks at whether to stop


class ReaderGoneError(VideoFileError):
    """The reader of a pipe ended, or takes nothing when the stream is to stop."""


class RawOutput(VideoWriter):
    """Writes y4m; a cut is ``XCUT`` in the header of its frame.

    Args:
        path: a ``.y4m`` file, a named pipe, or ``-`` for standard output, which is left open.
        fps: video frames a second.
        scale: whole number by which every pixel is enlarged.
        stopped: whether the person wants to stop; see above.
    """

    def __init__(self, path: Path, *, fps: int, scale: int = 1, stopped: Callable[[], bool] = never) -> None:
        self._path = path
        sink: ByteSink | None = None
        # Elsewhere pipes cannot be watched; there a write waits as long as it takes.
        if os.name == "posix" and (path == STANDARD_OUTPUT or is_pipe(path)):
            sink = _Pipe(path, stopped)
        self._video = Y4mVideo(path, fps=fps, scale=scale, sink=sink)

    def write(self, frames: Frames) -> None:
        """As ``VideoWriter.write``; raises ``ReaderGoneError`` when the reader of a pipe went away."""
        try:
            self._video.write(frames)
        except VideoFileError as error:
            if isinstance(error.__cause__, BrokenPipeError | TimeoutError):
                name = "standard output" if self._path == STANDARD_OUTPUT else f"'{self._path}'"
                what = "went away" if isinstance(error.__cause__, BrokenPipeError) else "takes nothing"
                raise ReaderGoneError(f"The reader of {name} {what}; the stream ends here.") from error
            raise

    def mark_cut(self) -> None:
        self._video.mark_cut()

    def close(self) -> None:
        self._video.close()


class _Pipe:
    """The writing end; it is opened at the first write, which waits for a reader."""

    def __init__(self, path: Path, stopped: Callable[[], bool]) -> None:
        self._path, self._stopped = path, stopped
        self._end: int | None = None
        # A regular file behind standard output takes everything at once.
        self._most = select.PIPE_BUF

    def write(self, data: memoryview) -> int:
        if self._end is None:
            self._end = self._open()
            if stat.S_ISREG(os.fstat(self._end).st_mode):
                self._most = 1 << 24
        end, given_up = self._end, None
        # So much a pipe that is ready takes without waiting.
        while not select.select([], [end], [], _LOOK)[1]:
            given_up = self._check_patience(given_up)
        return os.write(end, data[: self._most])

    def close(self) -> None:
        end, self._end = self._end, None
        if end is not None and self._path != STANDARD_OUTPUT:
            os.close(end)

    def _open(self) -> int:
        if self._path == STANDARD_OUTPUT:
            return sys.stdout.fileno()
        given_up = None
        while True:
            try:
                end = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                given_up = self._check_patience(given_up)
                time.sleep(_LOOK)
            else:
                os.set_blocking(end, True)
                return end

    def _check_patience(self, given_up: float | None) -> float | None:
        """When to give the reader up, once the person wants to stop; raises when it is time."""
        if not self._stopped():
            return None
        if given_up is None:
            return time.monotonic() + _PATIENCE
        if time.monotonic() >= given_up:
            raise TimeoutError(errno.ETIMEDOUT, "its reader takes nothing")
        return given_up
