"""Writing small files whole: whoever looks, whenever and after a crash of the program, finds the old or the new."""

import contextlib
import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes, *, private: bool = False, flush: bool = False) -> None:
    """Write a file beside its place, under a name that nobody else has, and move it there in one step.

    The file beside is ``.NAME.XXXXXXXX.part``; it stays only where the process is killed in between.

    Args:
        path: in a folder that is there.
        content: all of it.
        private: only the owner may read it; otherwise whoever the system's mask lets.
        flush: the content is on the disk before the file takes its place; otherwise a power failure may leave the new
            file without it.

    Raises:
        OSError: the system refuses, as when the disk is full; what was there before is as it was.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        partial.touch(0o600 if private else 0o666, exist_ok=False)
        with partial.open("wb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what matters
            partial.unlink(missing_ok=True)
        raise
