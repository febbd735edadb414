"""Where a user's file becomes bytes: a regular file and nothing else, up to a limit, and never waited for.

And the guard around other people's parsers: whatever they meet in a file is one sentence that names it.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arl2.errors import Arl2Error, CheckpointError, ConfigError, is_out_of_memory

_SHOWN = 200  # characters of another program's error


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a message."""
    said = str(error).strip().split("\n", maxsplit=1)[0]
    # A file decides what its parser says of it; a terminal is not to obey it.
    return "".join(letter if letter.isprintable() else "?" for letter in said[:_SHOWN])


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; of a path that cannot be one, as names from a file may be, it is not."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def require_regular(path: Path, *, error: type[Arl2Error] = CheckpointError) -> int:
    """The size in bytes of a regular file, before anybody opens it: a named pipe would be waited for without end.

    Raises:
        error: nothing there, a folder, a pipe or a device, or a path that cannot be one.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as refused:
        raise error(f"'{path}' cannot be read ({_reason(refused)}).") from refused
    if stat.S_ISDIR(found.st_mode):
        raise error(f"'{path}' is a folder; give a file.")
    if not stat.S_ISREG(found.st_mode):
        raise error(f"'{path}' is a pipe or a device; give a regular file.")
    return found.st_size


def read_bytes(path: Path, *, limit: int, error: type[Arl2Error] = ConfigError) -> bytes:
    """All bytes of a file.

    Args:
        limit: bytes of the largest file that is read.
        error: what is raised.

    Raises:
        error: as ``require_regular``, or a file that is too large or that the system does not give.
    """
    size = require_regular(path, error=error)
    try:
        # What a pipe has replaced since is opened without waiting.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            data = b"" if size > limit else file.read(limit + 1)
    except OSError as refused:
        raise error(f"'{path}' cannot be read ({_reason(refused)}).") from refused
    if max(size, len(data)) > limit:
        raise error(f"'{path}' is too large: it has {max(size, len(data)):,} bytes, and at most {limit:,} are read.")
    return data


def read_text(path: Path, *, limit: int, error: type[Arl2Error] = ConfigError) -> str:
    """A text file in UTF-8, with or without a byte order mark; line ends become newlines.

    Args:
        limit, error: as for ``read_bytes``.

    Raises:
        error: as ``read_bytes``, or what is not UTF-8: the line is named.
    """
    data = read_bytes(path, limit=limit, error=error)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as wrong:
        line = data[: wrong.start].count(b"\n") + 1
        raise error(f"'{path}', line {line}: this is not UTF-8 text; save the file as UTF-8.") from wrong


@contextmanager
def parsed_by_others(path: Path, what: str, *, error: type[Arl2Error] = CheckpointError) -> Iterator[None]:
    """A guard around a library that parses ``path``, and around no code of arl2, whose faults it would hide.

    Args:
        path: a file or folder.
        what: what it should be, for the message, such as "a whole .safetensors file".
        error: what is raised.

    Raises:
        error: for whatever the library raises, panics of libraries in Rust included; a lack of memory passes as it is.
    """
    try:
        yield
    except (Arl2Error, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as unexpected:
        if is_out_of_memory(unexpected):
            raise  # the file may be whole
        said = first_line(unexpected) or type(unexpected).__name__
        raise error(f"{path} is not {what} ({said}); download or copy it again.") from unexpected


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Errors of arl2 about what was read from ``path`` begin with it, if they do not name it."""
    try:
        yield
    except Arl2Error as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
