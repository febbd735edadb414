"""Standard output and standard error that outlast their reader: a broken ssh or ``| head`` ends no work."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Protocol, TextIO, cast, runtime_checkable

from arl2.errors import printable


@runtime_checkable
class Text(Protocol):
    """What is needed of ``sys.stdout`` and ``sys.stderr``."""

    @property
    def encoding(self) -> str:
        """Of the text."""

    def isatty(self) -> bool:
        """Whether somebody watches."""

    def fileno(self) -> int:
        """Number of the descriptor; raises ``OSError`` without one."""

    def write(self, text: str, /) -> int:
        """Send text."""

    def flush(self) -> None:
        """Now."""


class _Lasting:
    """A text stream; from the first refusal of the system on, what is written is dropped."""

    def __init__(self, stream: Text) -> None:
        self._stream, self._gone = stream, False

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether somebody watches."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream; raises ``OSError`` without one."""
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Send text, or drop it."""
        if not self._gone:
            try:
                self._stream.write(text)
            except OSError:
                self._drop()
        return len(text)

    def flush(self) -> None:
        """Send what waits, or drop it."""
        if not self._gone:
            try:
                self._stream.flush()
            except OSError:
                self._drop()

    def _drop(self) -> None:
        self._gone = True
        _to_nowhere(self._stream)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within, writing to ``sys.stdout`` and ``sys.stderr`` never raises ``OSError``."""
    with ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # an ASCII terminal (LANG=C) shows what it can
        # Without a terminal Windows has None.
        if sys.stdout is not None:
            out = cast(TextIO, _Lasting(sys.stdout))
            stack.enter_context(redirect_stdout(out))
            stack.callback(out.flush)
        if sys.stderr is not None:
            error = cast(TextIO, _Lasting(sys.stderr))
            stack.enter_context(redirect_stderr(error))
            stack.callback(error.flush)
        yield


def say_error(line: str) -> None:
    """A line on standard error, if anybody is there; what it quotes cannot steer the terminal."""
    with lasting_streams():
        print(printable(line), file=sys.stderr)


def _to_nowhere(stream: Text) -> None:
    """Let what the stream still holds go nowhere: Python writes it at exit, and its failure would be the exit code."""
    try:
        number = stream.fileno()
    except OSError:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
    finally:
        os.close(nowhere)
