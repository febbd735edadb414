"""Writing small files whole: whoever looks, whenever and after a crash of the program, finds the old or the new."""

import contextlib
import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file beside its place, under a name that nobody else has, and move it there in one step.

    The file beside is ``.NAME.XXXXXXXX.part``; it stays only where the process is killed in between. After a power
    failure the new file may be there without its content: nothing is flushed to the disk, as a file that must not be
    lost needs.

    Args:
        path: in a folder that is there.
        content: all of it.
        private: only the owner may read it; otherwise whoever the system's mask lets.

    Raises:
        OSError: the system refuses, as when the disk is full; what was there before is as it was.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        partial.touch(0o600 if private else 0o666, exist_ok=False)
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what matters
            partial.unlink(missing_ok=True)
        raise
