"""Writing files and folders atomically: a reader, also after a crash, finds the old one or the new one.

What is being written stands beside its place as ``.NAME.XXXXXXXX.part``, a name of our own making: nothing that was
there before is removed, followed or written through. A part is locked by the process that writes it, so the next
writer of the same file can tell what a killed process left from what another one is writing.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_TRIES, _BETWEEN = 4, 0.02  # of taking a lock; seconds between them


def write_atomically(path: Path, content: bytes, *, private: bool = False, flush: bool = False) -> None:
    """Write ``content`` as the file ``path``; arguments and errors as for ``atomic_file``."""
    with atomic_file(path, private=private, flush=flush) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False, flush: bool = False) -> Iterator[Path]:
    """An empty file to write to, which takes the place of ``path`` when the block ends without an error.

    Args:
        path: in a folder that exists.
        private: readable by the owner only; otherwise as the system's mask says.
        flush: content and name are on the disk when this returns; otherwise a power failure may lose them.

    Raises:
        OSError: the system refuses, as when the disk is full; what was there before is untouched.
    """
    remove_stale(path)
    with _part_of(path, lambda part: part.touch(0o600 if private else 0o666, exist_ok=False)) as part:
        yield part
        if flush:
            _flush(part)
        part.replace(path)
    if flush:
        _flush(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False, flush: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``path`` when the block ends without an error.

    Args:
        path: a new name, or an empty folder; its parents are made.
        replace: a folder that is there already gives way. Between two renames neither stands there; a kill at that
            moment is mended by the next writer, which finds the old one under ``.NAME.XXXXXXXX.old``.
        flush: as for ``atomic_file``, for every file written.

    Raises:
        OSError: the system refuses, or something is there that may not be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    with _part_of(path, Path.mkdir) as part:
        yield part
        if flush:
            for file in [*(one for one in part.rglob("*") if one.is_file()), part]:
                _flush(file)
        if replace and path.is_dir() and not path.is_symlink():
            old = _beside(path, "old")
            path.rename(old)
            part.rename(path)
            shutil.rmtree(old)
        else:
            part.rename(path)  # over an empty folder, but over nothing else
    if flush:
        _flush(path.parent)


def part_name(path: Path) -> Path:
    """A new name beside ``path`` for something that will take its place later; ``remove_stale`` knows it."""
    return _beside(path, "part")


def remove_stale(path: Path) -> None:
    """Remove what killed processes left of ``path``; what a living one is writing stays."""
    if not path.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.(part|old)")
    for found in sorted(path.parent.iterdir()):
        match = pattern.fullmatch(found.name)
        if match is None or found.is_symlink():
            continue
        with contextlib.suppress(OSError), _lock(found, wait=False):  # another process owns it, or was faster
            if match[1] == "old" and not path.exists():
                found.rename(path)
            elif found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()


def open_locked(path: Path) -> io.FileIO:
    """Open a file to write it from its beginning as it grows, unbuffered, for one writer at a time.

    For what must be readable while it is written, such as a video. The lock ends with the file, however that ends.

    Raises:
        BlockingIOError: another writer has opened it this way, in this process or another.
        OSError: the system refuses.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        take_lock(handle)
        if stat.S_ISREG(os.fstat(handle).st_mode):  # a device has no length
            os.ftruncate(handle, 0)
        return io.FileIO(handle, "wb")
    except BaseException:
        os.close(handle)
        raise


def lock_folder(path: Path) -> int:
    """A handle that holds a folder's lock until it is closed; raises ``BlockingIOError`` as ``open_locked``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        take_lock(handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def being_written(path: Path) -> bool:
    """Whether another writer has the file or folder open through ``open_locked`` or ``lock_folder``."""
    if os.name != "posix" or not (path.is_file() or path.is_dir()):
        return False
    try:
        os.close(lock_folder(path))
    except BlockingIOError:
        return True
    except PermissionError:
        return False  # what may not be read may still be written
    return False


def take_lock(handle: int) -> None:
    """Lock an open file or folder until ``handle`` is closed; raises ``BlockingIOError`` if another handle has it."""
    if os.name != "posix":
        return
    import fcntl

    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_BETWEEN)  # ``being_written`` holds it for an instant
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            return  # a file system without locks


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{ending}")


@contextlib.contextmanager
def _part_of(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A part made and locked by this process; gone at the end, unless it has become ``path``."""
    with contextlib.ExitStack() as held:
        while True:
            part = _beside(path, "part")
            make(part)
            # Until it is locked, another writer may take it for a dead process's and remove it: then once more.
            with contextlib.suppress(FileNotFoundError):
                held.enter_context(_lock(part, wait=True))
                if part.exists():
                    break
        try:
            yield part
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is what matters
                if part.is_dir():
                    shutil.rmtree(part)
                else:
                    part.unlink()
            raise


@contextlib.contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a file's or folder's lock, which the system takes back when this process ends, however it ends.

    Raises:
        OSError: another process holds it, where this one does not wait.
    """
    if os.name != "posix":  # there an open file cannot be renamed, so nothing is locked and nothing is stale
        if not wait:
            raise BlockingIOError(f"no locks here for {path}")
        yield
        return
    import fcntl

    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    """Onto the disk; where folders cannot be opened (Windows), renaming is all there is."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
