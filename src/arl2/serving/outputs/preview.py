"""A stream in a terminal: two pixels a character, in 24-bit colour, so that it can be watched over ssh.

Only characters that changed are sent.
"""

import os
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from arl2.serving.pace import Pace
from arl2.video.formats import VideoFileError
from arl2.video.pixels import Frame, Frames
from arl2.video.writing import VideoWriter

# Upper and lower half of a character: the colour of its ink, and of its ground.
Cells = UInt8[np.ndarray, "rows columns 6"]

_UPPER_HALF = "\u2580"
_HIDE, _SHOW, _CLEAR, _PLAIN = "\x1b[?25l", "\x1b[?25h", "\x1b[2J", "\x1b[0m"


@runtime_checkable
class Terminal(Protocol):
    """What is needed of ``sys.stdout``."""

    @property
    def encoding(self) -> str:
        """Of its text."""

    def isatty(self) -> bool:
        """Whether somebody watches."""

    def fileno(self) -> int:
        """Number of its descriptor; raises ``OSError`` without one."""

    def write(self, text: str, /) -> int:
        """Send text."""

    def flush(self) -> None:
        """Now."""


def require_terminal(terminal: Terminal) -> None:
    """Raise ``VideoFileError`` with the reason if nothing can be drawn there."""
    if not terminal.isatty():
        raise VideoFileError("no preview: this is no terminal")
    if os.environ.get("TERM", "dumb") == "dumb":
        raise VideoFileError("no preview: this terminal (TERM) cannot place its cursor")
    try:
        _UPPER_HALF.encode(terminal.encoding or "ascii")
    except (UnicodeEncodeError, LookupError) as error:
        raise VideoFileError(f"no preview: this terminal writes {terminal.encoding}; use UTF-8") from error


class TerminalPreview(VideoWriter):
    """Draws frames over each other, a line about them below.

    Args:
        terminal: that ``require_terminal`` accepts.
        pace: waited for after every frame; None draws the last frame of each ``write``, at once.
        caption: what stands below; the preview puts its own frame rate before it.
    """

    def __init__(self, terminal: Terminal, *, pace: Pace | None, caption: Callable[[], str]) -> None:
        self._terminal, self._pace, self._caption = terminal, pace, caption
        self._shown: Cells | None = None
        self._size: tuple[int, int] | None = None
        self._gone = False
        self._since, self._frames = time.monotonic(), 0

    def write(self, frames: Frames) -> None:
        """Never raises for a terminal that went away: from then on nothing is drawn."""
        drawn = frames[-1:] if self._pace is None else frames
        for number, frame in enumerate(drawn):
            self._frames += len(frames) if self._pace is None else 1
            # A line that changes sixteen times a second cannot be read.
            self._draw(frame, with_caption=number == 0)
            if self._pace is not None:
                self._pace.wait(1)

    def mark_cut(self) -> None:
        """The picture itself shows it."""

    def close(self) -> None:
        """Give the cursor back, below the picture."""
        if self._size is not None:
            rows = self._size[1]
            self._size = self._shown = None
            self._send(f"{_PLAIN}\x1b[{rows};1H{_SHOW}\n")

    def _draw(self, frame: Frame, *, with_caption: bool) -> None:
        size = self._terminal_size()
        text = ""
        if size != self._size:
            self._size, self._shown = size, None
            text = _HIDE + _PLAIN + _CLEAR
            with_caption = True
        columns, rows = size
        cells = to_cells(frame, columns, rows - 1)
        text += changes(cells, self._shown)
        if with_caption:
            passed = time.monotonic() - self._since
            words = f"{self._frames / passed if passed else 0:.0f} fps  {self._caption()}"
            # A prompt may hold anything, commands to the terminal too.
            shown = "".join(letter for letter in words if letter.isprintable())[: columns - 1]
            text += f"\x1b[{len(cells) + 1};1H{_PLAIN}{shown}\x1b[K"
        self._shown = cells
        self._send(text)

    def _terminal_size(self) -> tuple[int, int]:
        """Columns and rows, of a usual terminal where it does not say."""
        try:
            size = os.get_terminal_size(self._terminal.fileno())
        except OSError:
            return 80, 24
        return max(2, size.columns or 80), max(2, size.lines or 24)

    def _send(self, text: str) -> None:
        if self._gone:
            return
        try:
            self._terminal.write(text)
            self._terminal.flush()
        except OSError:
            self._gone = True


def to_cells(frame: Frame, columns: int, rows: int) -> Cells:
    """A frame as characters: no more than ``columns`` x ``rows``, and no larger than it is."""
    height, width, _ = frame.shape
    share = min(1.0, columns / width, 2 * rows / height)
    wide, tall = max(1, int(width * share)), max(1, int(height * share / 2))
    if (2 * tall, wide) != (height, width):
        frame = np.asarray(Image.fromarray(frame).resize((wide, 2 * tall), Image.Resampling.BOX))
    return np.ascontiguousarray(frame.reshape(tall, 2, wide, 3).transpose(0, 2, 1, 3).reshape(tall, wide, 6))


def changes(cells: Cells, before: Cells | None) -> str:
    """Commands that turn ``before`` (None: an empty screen) into ``cells``."""
    changed = np.ones(cells.shape[:2], dtype=bool)
    if before is not None and before.shape == cells.shape:
        changed = (cells != before).any(axis=2)
    said = []
    ink: tuple[int, ...] = ()
    for row in np.flatnonzero(changed.any(axis=1)):
        places = np.flatnonzero(changed[row])
        first, last = int(places[0]), int(places[-1])
        said.append(f"\x1b[{row + 1};{first + 1}H")
        for cell in cells[row, first : last + 1].tolist():
            if tuple(cell) != ink:
                ink = tuple(cell)
                said.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*ink))
            said.append(_UPPER_HALF)
    return "".join(said)
