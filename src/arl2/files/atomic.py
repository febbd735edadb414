"""Writing files and folders atomically: a reader, also after a crash, finds the old one or the new one.

What is being written stands beside its place as ``.NAME.XXXXXXXX.part``, a name of our own making: nothing that was
there before is removed, followed or written through. A part is locked by the process that writes it, so the next
writer of the same file can tell what a killed process left from what another one is writing.

One rule for links, and for files of several names: an output's name gets the new file, and what the name stood for
before stays as it is. A link to a device or a pipe is followed, and so is one to a folder that files are added to.
What is written whole takes the place of files alone: a device, a pipe or a folder there is refused.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from arl2.files.locks import is_locked, open_to_lock, take_lock, writer_of

_WEIGHTS = re.compile(r".+\.safetensors(\.index\.json)?")
_ENDINGS = r"\.[0-9a-f]{8}\.(?P<kind>part|old)"


class StagedFile:
    """A file beside its place, locked by this process until it is published or discarded.

    Args:
        path: its place, in a folder that exists.
        private: readable by the owner only; otherwise as the system's mask says.

    Raises:
        OSError: the system refuses, or something is there that is neither a file nor a link to one.
    """

    def __init__(self, path: Path, *, private: bool = False) -> None:
        refuse_other_kinds(path)
        remove_stale(path)
        self.path, self._held = path, contextlib.ExitStack()
        mode = 0o600 if private else 0o666
        self.part = self._held.enter_context(_part_of(path, lambda part: part.touch(mode, exist_ok=False)))

    def publish(self, *, flush: bool = False) -> None:
        """Let it take its place; with ``flush``, content and name are on the disk when this returns."""
        with self._held:
            if flush:
                flush_to_disk(self.part)
            self.part.replace(self.path)
        if flush:
            flush_to_disk(self.path.parent)

    def discard(self) -> None:
        """Remove it; after ``publish`` this does nothing."""
        with self._held:
            self.part.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, *, private: bool = False, flush: bool = False) -> None:
    """Write ``content`` as the file ``path``; arguments and errors as for ``atomic_file``."""
    with atomic_file(path, private=private, flush=flush) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False, flush: bool = False) -> Iterator[Path]:
    """An empty file to write to, which takes the place of ``path`` when the block ends without an error.

    Args:
        path, private: as for ``StagedFile``.
        flush: content and name are on the disk when this returns; otherwise a power failure may lose them.

    Raises:
        OSError: the system refuses, as when the disk is full; what was there before is untouched.
    """
    staged = StagedFile(path, private=private)
    try:
        yield staged.part
        staged.publish(flush=flush)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what matters
            staged.discard()
        raise


def write_new(path: Path, content: bytes) -> None:
    """Write a file of a name that is free, whole or not at all, without a look at what else its folder holds.

    For many files one after the other. Where the system can make a file without a name, a kill leaves nothing.

    Raises:
        OSError: the system refuses; ``FileExistsError`` where something of that name is there.
    """
    try:
        handle = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)  # type: ignore[attr-defined,unused-ignore]
    except (AttributeError, OSError):  # another system, or a file system without them
        if path.is_symlink() or path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        write_atomically(path, content)
        return
    with io.FileIO(handle, "wb") as file:
        rest = memoryview(content)
        while len(rest):
            rest = rest[file.write(rest) :]
        # With a folder given, Python follows the link, as the system wants it of a file without a name.
        os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=handle, follow_symlinks=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False, keep: bool = False, flush: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``path`` when the block ends without an error.

    Args:
        path: a new name, or an empty folder; its parents are made.
        replace: a folder that is there already gives way. Between two renames neither stands there; a kill at that
            moment is mended by the next writer, which finds the old one under ``.NAME.XXXXXXXX.old``.
        keep: with ``replace``: files of the old folder that the new one lacks are kept, other than weights.
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
                flush_to_disk(file)
        if keep and path.is_dir():
            for file in _files_in(path):
                if not os.path.lexists(part / file) and file not in _outdated(path, part):
                    (part / file.parent).mkdir(parents=True, exist_ok=True)
                    os.link(path / file, part / file, follow_symlinks=False)
        if replace and path.is_dir():
            old = _beside(path, "old")
            path.rename(old)  # of a link: the link
            part.rename(path)
            remove(old)
        else:
            part.rename(path)  # over an empty folder, but over nothing else
    if flush:
        flush_to_disk(path.parent)


@contextlib.contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, whose files take their places in ``folder``, one by one, when the block ends well.

    For a folder that others may have files in as well; one that is new, or empty, appears as a whole.

    Raises:
        OSError: the system refuses; while the files are written, what was there before is untouched.
    """
    if not (folder.is_dir() and any(folder.iterdir())):
        with atomic_folder(folder.resolve() if folder.is_dir() else folder) as part:
            yield part
        return
    staged = folder / "arl2"
    remove_stale(staged)
    with _part_of(staged, Path.mkdir) as part:
        yield part
        old = _outdated(folder, part)
        for file in _files_in(part):
            (folder / file.parent).mkdir(parents=True, exist_ok=True)
            (part / file).replace(folder / file)
        for file in old:
            (folder / file).unlink()
        shutil.rmtree(part)


def _outdated(old: Path, new: Path) -> list[Path]:
    """Weights of an older model that the new one's do not replace; beside them, they would be read as its shards."""
    written = _files_in(new)
    places = {file.parent for file in written if _WEIGHTS.fullmatch(file.name)}
    there = [file for file in _files_in(old) if file.parent in places and _WEIGHTS.fullmatch(file.name)]
    return [file for file in there if file not in written]


def refuse_other_kinds(path: Path) -> None:
    """Raise ``OSError`` for a place that a whole file may not take: a folder, a device, a pipe, or a link to one.

    The superuser could rename a file over ``/dev/full``, and the device would be gone.
    """
    with contextlib.suppress(FileNotFoundError):
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "a device or a pipe is there, which a file would replace", str(path))


def remove_stale(path: Path) -> None:
    """Remove what killed processes left of ``path``; what a living one is writing stays."""
    _remove_left(path.parent, re.compile(rf"\.(?P<name>{re.escape(path.name)}){_ENDINGS}"))


def remove_all_stale(folder: Path) -> None:
    """``remove_stale`` of everything in a folder that holds our files alone."""
    _remove_left(folder, re.compile(rf"\.(?P<name>.+){_ENDINGS}"))


def open_locked(path: Path) -> io.FileIO:
    """Open a new file to write it as it grows, unbuffered, for one writer at a time; one that is there gives way.

    For what must be readable while it is written, such as a video. The lock ends with the file, however that ends.

    Raises:
        BlockingIOError: another writer has opened it this way, in this process or another.
        OSError: the system refuses.
    """
    while True:
        with contextlib.suppress(FileNotFoundError):  # it was there, and no longer is: once more
            if (path.is_symlink() or path.exists()) and not _gives_way(path):
                return path.open("wb", buffering=0)
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            try:
                take_lock(handle)
                # Until it was locked, another writer may have taken it for one that gives way.
                if _is(path, handle):
                    return io.FileIO(handle, "wb")
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)


def being_written(path: Path) -> bool:
    """Whether another writer holds the lock of a file or folder, or writes a part that will take its place."""
    return _written_as(path) is not None


def who_writes(path: Path) -> str:
    """Who does, in words, as ``writer_of``."""
    return writer_of(_written_as(path) or path)


def _written_as(path: Path) -> Path | None:
    if os.name == "posix" and path.parent.is_dir():
        pattern = re.compile(rf"\.{re.escape(path.name)}{_ENDINGS}")
        parts = [found for found in path.parent.iterdir() if pattern.fullmatch(found.name) and not found.is_symlink()]
        return next((one for one in [path, *parts] if is_locked(one)), None)
    return None


def _gives_way(path: Path) -> bool:
    """Remove a file, or a link, that a new file takes the place of; False for a device or a pipe, which takes data.

    Raises:
        OSError: a folder, a file that may not be written, or one that another process is writing.
    """
    if path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            kind = path.stat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                return False
        path.unlink()
        return True
    if not (path.is_file() or path.is_dir()):
        return False
    handle = os.open(path, os.O_WRONLY)
    try:
        take_lock(handle)
        if _is(path, handle):
            path.unlink()
    finally:
        os.close(handle)
    return True


def _is(path: Path, handle: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(handle))
    return False


def _remove_left(folder: Path, pattern: re.Pattern[str]) -> None:
    try:
        there = sorted(folder.iterdir())
    except OSError:
        return  # no folder, or one that may not be read: nothing to remove
    for found in there:
        match = pattern.fullmatch(found.name)
        if match is None or (found.is_symlink() and match["kind"] == "part"):  # parts are never links
            continue
        with contextlib.suppress(OSError), _lock(found, wait=False):  # another process owns it, or was faster
            place = folder / match["name"]
            if match["kind"] == "old" and not (place.exists() or place.is_symlink()):
                found.rename(place)
            else:
                remove(found)


def _files_in(folder: Path) -> list[Path]:
    """All files and links in a folder and those inside it, relative to it."""
    found = [Path(place) / name for place, inside, names in os.walk(folder) for name in (*names, *inside)]
    return sorted(one.relative_to(folder) for one in found if one.is_symlink() or not one.is_dir())


def remove(path: Path) -> None:
    """A folder with all it holds, a file, or a link and not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


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
                remove(part)
            raise


@contextlib.contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a file's or folder's lock, which the system takes back when this process ends, however it ends.

    Raises:
        OSError: another process holds it, or may hold it on a file system without locks, and this one does not wait.
    """
    if path.is_symlink():  # nobody writes through one that gave way
        yield
        return
    if os.name != "posix":  # there an open file cannot be renamed, so nothing is locked and nothing is stale
        if not wait:
            raise BlockingIOError(f"no locks here for {path}")
        yield
        return
    handle = open_to_lock(path, follow=False)
    try:
        if not take_lock(handle, wait=wait, tries=1) and not wait:
            raise BlockingIOError(f"no locks here for {path}")
        yield
    finally:
        os.close(handle)


def flush_to_disk(path: Path) -> None:
    """Bring a file's content, or the names in a folder, onto the disk.

    Where folders cannot be opened (Windows), renaming is all there is.
    """
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
