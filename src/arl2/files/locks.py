"""Locks of files and folders that are written for long: one process at a time, and the second learns who writes.

The system keeps a lock with the open file and takes it back when the process ends, however it ends: nothing is left
that would have to be judged by its age. On a file system without locks all is written as well, but nobody learns of
another writer, and what a killed process left stays: a living one could be writing it.
"""

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

# What file systems without locks answer; EBADF is NFS's word for a handle that is not writable, as a folder's.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
_TRIES, _BETWEEN = 4, 0.02  # of taking a lock; seconds between them
_LOCKS = Path("/proc/locks")
_HELD = re.compile(r"\d+: FLOCK\s+\S+\s+\S+\s+(?P<process>\d+) \S+:(?P<inode>\d+) ")


def take_lock(handle: int, *, wait: bool = False, tries: int = _TRIES, shared: bool = False) -> bool:
    """Lock an open file or folder until ``handle`` is closed; False where the file system has no locks.

    ``shared``: others may have it shared, too, but nobody alone.

    Raises:
        BlockingIOError: another handle has it, in this process or another, and this one does not ``wait``.
    """
    if os.name != "posix":
        return False
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    for left in reversed(range(tries)):
        try:
            fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_BETWEEN)  # ``is_locked`` holds it for an instant
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            return False
    return False


def open_to_lock(path: Path, *, follow: bool = True) -> int:
    """A handle to lock a file or folder by: writable where the system lets, since NFS locks files by no other.

    Raises:
        OSError: the system refuses; a link, without ``follow``.
    """
    flags = os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)  # a pipe without a reader is not waited for
    try:
        return os.open(path, flags | os.O_RDWR)
    except (IsADirectoryError, PermissionError):
        return os.open(path, flags | os.O_RDONLY)


def lock_folder(path: Path, *, wait: bool = False) -> int:
    """A handle that holds a folder's lock until it is closed; raises ``BlockingIOError`` as ``take_lock``."""
    handle = open_to_lock(path)
    try:
        take_lock(handle, wait=wait)
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextlib.contextmanager
def locked_folder(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock within; raises ``BlockingIOError`` as ``take_lock``."""
    if os.name != "posix":  # there a folder cannot be opened
        yield
        return
    handle = lock_folder(path, wait=wait)
    try:
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of a file or folder, in this process or another."""
    if os.name != "posix" or not (path.is_file() or path.is_dir()):
        return False
    try:
        os.close(lock_folder(path))
    except BlockingIOError:
        return True
    except OSError:
        return False  # what may not be read may still be written
    return False


def writer_of(path: Path) -> str:
    """Who holds the lock of a file or folder, in words: "process 4711 on sirius", or "another process" if unknown."""
    # Only Linux tells, and only of processes of this machine that this one may see.
    with contextlib.suppress(OSError, ValueError):
        inode = path.stat().st_ino
        for line in _LOCKS.read_text(encoding="ascii").splitlines():
            found = _HELD.match(line)
            if found and int(found["inode"]) == inode and int(found["process"]):
                return f"process {found['process']} on {socket.gethostname()}"
    return "another process"
