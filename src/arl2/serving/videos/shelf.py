"""Video jobs on disk: a folder each, with a record that is written whole or not at all.

``videos/ID/job.json``, ``input`` (an image or video that it starts from), ``video.mp4`` with its manifest
``video.json``, ``thumbnail.webp`` and ``spritesheet.jpg``.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from arl2.files.atomic import remove_all_stale
from arl2.files.locks import lock_folder, writer_of
from arl2.serving.live.objects import FolderObjects, StoreError
from arl2.serving.live.records import read_record, write_record
from arl2.video.formats import writing_failed

logger = logging.getLogger(__name__)

Status = Literal["queued", "in_progress", "completed", "failed"]
VIDEO, THUMBNAIL, SPRITESHEET = "video.mp4", "thumbnail.webp", "spritesheet.jpg"
_ID = re.compile(r"video_[0-9a-f]{32}")
# How an upload is named, by its first bytes: readers of animations go by the name, all others look inside.
_KINDS = {b"GIF8": "input.gif", b"RIFF": "input.webp", b"\x89PNG": "input.png", b"\xff\xd8": "input.jpg"}


@runtime_checkable
class Upload(Protocol):
    """A file that a client sent, open for reading."""

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes, all if negative; none at its end."""
        ...


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """A video job.

    Attributes:
        id: ``video_`` and 32 hexadecimal digits.
        created, completed, expires: seconds since 1970; None: not yet, or never.
        status: where it is.
        model: as clients know it.
        prompt: what the video shows.
        sampling: sampling options by name, with the seed.
        frames, fps: of the file.
        width, height: of the file.
        scale: how much the file enlarges what the model makes.
        progress: percent.
        remixed_from: the job that it varies.
        image, video: name of the upload in its folder that it starts from, or continues.
        attempts: how often it was begun.
        error, error_code: of "failed": a sentence, and a word for programs.
    """

    id: str
    created: float
    status: Status
    model: str
    prompt: str
    frames: int
    fps: int
    width: int
    height: int
    scale: int
    sampling: dict[str, Any] = field(default_factory=dict)
    progress: int = 0
    completed: float | None = None
    expires: float | None = None
    remixed_from: str | None = None
    image: str | None = None
    video: str | None = None
    attempts: int = 0
    error: str | None = None
    error_code: str | None = None

    @property
    def is_over(self) -> bool:
        """Nothing more happens to it."""
        return self.status in ("completed", "failed")


class VideoShelf:
    """The folders of all jobs, for one process at a time.

    Raises:
        StoreError: the folder cannot be used, or another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._objects = FolderObjects(folder)
        self.folder = self._objects.folder
        try:
            self._lock: int | None = lock_folder(self.folder)
        except BlockingIOError as error:
            raise StoreError(
                f"The videos in '{folder}' are in use by {writer_of(self.folder)}; end that server, or choose another "
                "place."
            ) from error

    def close(self) -> None:
        """Let another process have it; a second call does nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def load(self) -> list[VideoRecord]:
        """All jobs, oldest first. What a kill left of a job that never was, or of a deleted one, is removed."""
        found = []
        for name, size in self._objects.sizes("").items():
            if size is not None or not _ID.fullmatch(name):
                continue
            if not self._objects.holds(f"{name}/job.json"):
                self._objects.remove(name)
                continue
            remove_all_stale(self.folder / name)
            try:
                record = read_record(self._objects, f"{name}/job.json", VideoRecord)
                if record.id != name or not all(_is_upload(one) for one in (record.image, record.video)):
                    raise StoreError(f"'{name}/job.json' is damaged.")
                found.append(record)
            except StoreError as error:
                logger.warning("%s This video job is left out.", error)
        return sorted(found, key=lambda one: (one.created, one.id))

    def new(self) -> str:
        """A folder for a new job; its name is the job's. Without a record it is gone after the next start."""
        id = f"video_{secrets.token_hex(16)}"
        with self._said(id):
            (self.folder / id).mkdir()
        return id

    def keep_upload(self, id: str, upload: Upload) -> str:
        """Copy what was uploaded into a job's folder; its name there."""
        start = upload.read(4)
        name = next((name for mark, name in _KINDS.items() if start.startswith(mark)), "input.mp4")
        with self._said(id), (self.folder / id / name).open("wb") as file:
            file.write(start)
            shutil.copyfileobj(upload, file)
            file.flush()
            os.fsync(file.fileno())
        return name

    def copy_upload(self, source: Path, id: str) -> str:
        """The same of a file of another job."""
        with self._said(id), source.open("rb") as file:
            return self.keep_upload(id, file)

    def write(self, record: VideoRecord) -> None:
        """Keep a job's record.

        Raises:
            ConfigError: a prompt that is no Unicode text.
            StoreError: the system refuses.
        """
        write_record(self._objects, f"{record.id}/job.json", record)

    def forget(self, id: str) -> None:
        """Remove a job's record: from now on it is not there, whatever happens."""
        if self._objects.holds(f"{id}/job.json"):
            self._objects.remove(f"{id}/job.json")

    def remove(self, id: str) -> None:
        """A job with all its files."""
        self.forget(id)
        if self._objects.holds(id):
            self._objects.remove(id)

    def path(self, id: str, name: str) -> Path:
        """Of a file of a job."""
        return self.folder / id / name

    @contextlib.contextmanager
    def _said(self, id: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise writing_failed(self.folder / id, error) from error


def _is_upload(name: str | None) -> bool:
    return name is None or name in (*_KINDS.values(), "input.mp4")
