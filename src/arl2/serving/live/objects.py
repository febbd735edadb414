"""Named objects in a folder, or at any address that fsspec knows: whole or not at all, and durable when written."""

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arl2.errors import Arl2Error, ConfigError
from arl2.files.atomic import flush_to_disk, remove_all_stale, write_atomically
from arl2.files.regular import first_line, read_bytes

_FOLDERS = ("file", "local")  # addresses of folders of this machine


class StoreError(Arl2Error):
    """A store that the system does not let be read or written, that another server uses, or that holds damage."""


class Objects(ABC):
    """Objects under names such as ``streams/a/stream.json``; the names are made by arl2 and never checked here.

    All methods raise ``StoreError`` where the system refuses; reading and removing, also where nothing has that name.
    """

    place: str

    @abstractmethod
    def read(self, name: str, *, limit: int) -> bytes:
        """All bytes of an object; ``limit``: the most that it may have."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write an object, which takes the place of one that is there; when this returns, it outlives the machine."""

    @abstractmethod
    def holds(self, name: str) -> bool:
        """Whether an object, or a folder of objects, has that name."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int | None]:
        """What is directly in a folder: bytes by name, None for a folder. Empty where there is none."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove an object, or a folder with all that it holds."""

    @abstractmethod
    def tidy(self, folder: str) -> None:
        """Remove what killed writers left in a folder."""


def open_objects(place: str | Path) -> Objects:
    """The objects of a folder, which is made if it is not there, or of an address such as ``s3://bucket/streams``.

    Raises:
        ConfigError: an address that fsspec does not know, or whose own package is missing.
        StoreError: a folder that cannot be made.
    """
    scheme, _, rest = str(place).partition("://")
    if isinstance(place, Path) or not rest:
        return FolderObjects(Path(place))
    if scheme in _FOLDERS:
        return FolderObjects(Path(rest))
    return AddressObjects(str(place))


class FolderObjects(Objects):
    """Objects as files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder.absolute(), str(folder)
        with self._refused():
            _make_folders(self.folder)

    def read(self, name: str, *, limit: int) -> bytes:
        return read_bytes(self.folder / name, limit=limit, error=StoreError)

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        with self._refused():
            _make_folders(path.parent)
            write_atomically(path, data, flush=True)

    def holds(self, name: str) -> bool:
        return (self.folder / name).exists()

    def sizes(self, folder: str) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        with self._refused(), contextlib.suppress(FileNotFoundError), os.scandir(self.folder / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed since
                    if not entry.name.startswith("."):
                        found[entry.name] = None if entry.is_dir() else entry.stat().st_size
        return found

    def remove(self, name: str) -> None:
        path = self.folder / name
        with self._refused():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            flush_to_disk(path.parent)

    def tidy(self, folder: str) -> None:
        remove_all_stale(self.folder / folder)

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"The store '{self.place}' cannot be used ({error.strerror or first_line(error)}); free space or give "
                "rights there, or choose another place."
            ) from error


class AddressObjects(Objects):
    """Objects at an address, by fsspec. Whether one is written whole or not at all is the address's own affair."""

    def __init__(self, address: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise ConfigError('A store that is an address needs fsspec: pip install "arl2[serve]".') from error
        try:
            self._system, self._root = url_to_fs(address, use_listings_cache=False)
        except Exception as error:  # packages of many others
            raise ConfigError(
                f"The store '{address}' cannot be opened ({first_line(error)}); give a folder, or an address that "
                "fsspec knows, and install the package that it needs."
            ) from error
        self.place, self._root = address, self._root.rstrip("/")

    def read(self, name: str, *, limit: int) -> bytes:
        with self._refused():
            size = self._system.info(self._path(name))["size"]
            data: bytes = b"" if size > limit else self._system.cat_file(self._path(name))
        if max(size, len(data)) > limit:
            raise StoreError(f"'{name}' in '{self.place}' has {size:,} bytes; at most {limit:,} are read.")
        return data

    def write(self, name: str, data: bytes) -> None:
        with self._refused():
            self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._system.pipe_file(self._path(name), data)

    def holds(self, name: str) -> bool:
        with self._refused():
            return bool(self._system.exists(self._path(name)))

    def sizes(self, folder: str) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        with self._refused():
            listed: list[dict[str, Any]] = []
            with contextlib.suppress(FileNotFoundError):
                listed = self._system.ls(self._path(folder), detail=True)
            for one in listed:
                name = one["name"].rstrip("/").rpartition("/")[2]
                found[name] = None if one["type"] == "directory" else one["size"]
        return found

    def remove(self, name: str) -> None:
        with self._refused():
            self._system.rm(self._path(name), recursive=True)

    def tidy(self, folder: str) -> None:
        """Nothing: what was not written whole is at an address under its own name, or not at all."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except Arl2Error:
            raise
        except Exception as error:  # packages of many others, each with its own errors
            said = first_line(error) or type(error).__name__
            raise StoreError(
                f"The store '{self.place}' cannot be used ({said}); see whether it can be reached."
            ) from error


def _make_folders(path: Path) -> None:
    """Make a folder and those above it, so that all their names are on the disk."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        flush_to_disk(folder.parent)
    if not path.is_dir():
        raise NotADirectoryError(20, "a file is there, where a folder is needed")
