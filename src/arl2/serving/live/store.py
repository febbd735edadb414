"""What outlives a server: its streams, their commands and points, in a folder or at an address.

``server.lock`` (at an address also ``sharing``); ``streams/ID/stream.json``, ``streams/ID/journal/00000007.json`` (one
small object a command, which works where nothing can be appended to), ``streams/ID/points/00000012.json`` beside the
snapshot that it names.
Bytes are durable before the record that names them, so that a kill at any moment leaves the old or the new.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arl2.errors import ConfigError
from arl2.serving.live.journal import Journal, JournalEntry
from arl2.serving.live.objects import StoreError, open_objects
from arl2.serving.live.place_lock import HeldObjects, PlaceLock
from arl2.serving.live.points import Points
from arl2.serving.live.records import read_record, write_record
from arl2.serving.live.wire import Point, StreamRequest, UnknownStreamError

logger = logging.getLogger(__name__)

_ID = re.compile(r"[a-z0-9-]{1,64}")
_STREAMS = "streams"
Part = Literal["record", "journal", "points"]
_PARTS: tuple[Part, ...] = ("record", "journal", "points")


@dataclass(frozen=True, kw_only=True)
class StreamRecord:
    """A stream as it is kept; what changes with every block is told by its points and its journal.

    Attributes:
        id: its name: 1 to 64 small letters, digits and hyphens.
        created: seconds since 1970.
        request: as it was begun, with its seed.
        model_hash: of the model that made it.
        width, height, fps: of its video.
        parent: the stream that it was forked from.
        paused: as it was last.
        block, frame: its first ones; a fork goes on from its parent's.
        prompts: those that it had before the first command of its journal, and the block at which each begins, oldest
            first.
        state: None while it can go on.
        error: of "failed": a sentence.
    """

    id: str
    created: float
    request: StreamRequest
    model_hash: str
    width: int
    height: int
    fps: int
    parent: str | None = None
    paused: bool = False
    block: int = 0
    frame: int = 0
    prompts: tuple[tuple[int, str], ...] = ()
    state: Literal["ended", "failed"] | None = None
    error: str | None = None


class StreamStore:
    """Streams under a place. All methods may be called from any thread; they wait for the disk or the network.

    Args:
        place: a folder, made if it is not there, or an address that fsspec knows, such as ``s3://bucket/streams``.
        shared: with other processes that share it, which see to it that each stream has one of them; otherwise this one
            is alone.

    Raises:
        ConfigError: an address that cannot be opened.
        StoreError: a place that cannot be used, or that another server uses, if one of the two is to be alone.
    """

    def __init__(self, place: str | Path, *, shared: bool = False) -> None:
        objects = open_objects(place)
        self._lock = PlaceLock(objects, shared=shared)
        self._objects = HeldObjects(objects, self._lock)
        # Of each part: a command is not to wait until a large snapshot is written.
        self._locks: dict[tuple[str, Part], threading.Lock] = {}
        self._guard = threading.Lock()
        if not shared:
            try:
                self._tidy()
            except BaseException:
                self.close()
                raise

    @property
    def place(self) -> str:
        """As it was given."""
        return self._objects.place

    def close(self) -> None:
        """Let another server have it; a second call does nothing."""
        self._lock.close()

    def records(self) -> list[StreamRecord]:
        """All streams, oldest first; one whose record is damaged is listed as failed, with the sentence."""
        found = []
        for id in self._ids():
            with contextlib.suppress(UnknownStreamError):  # deleted since
                try:
                    found.append(self.read(id))
                except StoreError as error:
                    logger.warning("%s", error)
                    found.append(_damaged(id, str(error)))
        return sorted(found, key=lambda one: (one.created, one.id))

    def read(self, id: str) -> StreamRecord:
        """One stream.

        Raises:
            UnknownStreamError: no stream of that name.
            StoreError: its record is damaged, or the system refuses.
        """
        with self._part(id, "record") as folder:
            record = read_record(self._objects, f"{folder}/stream.json", StreamRecord)
        if record.id != id:
            raise StoreError(f"'{folder}/stream.json' in the store '{self.place}' is damaged: it is of '{record.id}'.")
        return record

    def write(self, record: StreamRecord, *, new: bool = True) -> None:
        """Keep a stream's record, in place of the one that is there.

        Args:
            record: of the stream.
            new: whether there may be none yet.

        Raises:
            UnknownStreamError: there is none, as where the stream was deleted, and it may not be new.
            ConfigError: a name that is none, or what cannot be read again.
            StoreError: the system refuses.
        """
        if not _ID.fullmatch(record.id):
            raise ConfigError(f"Got the stream's name '{record.id:.80}'; give small letters, digits and hyphens.")
        with self._part(record.id, "record", new=new) as folder:
            write_record(self._objects, f"{folder}/stream.json", record)

    def delete(self, id: str) -> None:
        """Remove a stream with all that is kept of it."""
        with contextlib.ExitStack() as held:
            for part in _PARTS:
                folder = held.enter_context(self._part(id, part))
            self._objects.remove(f"{folder}/stream.json")  # from now on it is not there, whatever happens
            if self._objects.holds(folder):  # an address forgets a folder with its last object
                self._objects.remove(folder)
            with self._guard:
                for part in _PARTS:
                    self._locks.pop((id, part), None)

    def add_point(self, id: str, point: Point, data: bytes) -> None:
        """Keep a point and its snapshot; one of the same block gives way when the new one is whole."""
        with self._points(id) as points:
            points.add(point, data)

    def points(self, id: str) -> list[Point]:
        """The whole ones, oldest first; damaged ones are named in a warning."""
        with self._points(id) as points:
            return points.all()

    def last_point(self, id: str) -> Point | None:
        """The newest whole one, without reading the others; None: there is none."""
        with self._points(id) as points:
            return points.last()

    def point_bytes(self, id: str, block: int) -> bytes:
        """The snapshot of a point.

        Raises:
            UnknownStreamError: no such stream or point.
            StoreError: it is damaged, or the system refuses.
        """
        with self._points(id) as points:
            return points.data(block)

    def newest_point(self, id: str, most: int | None = None) -> tuple[Point, bytes] | None:
        """The newest point that is whole, of those with ``block <= most``, with its snapshot; None: there is none."""
        with self._points(id) as points:
            return points.newest(most)

    def prune(self, id: str, keep: int) -> None:
        """Remove the oldest points beyond ``keep``."""
        with self._points(id) as points:
            points.prune(keep)

    def append(self, id: str, entry: JournalEntry) -> None:
        """Keep a command; when this returns it is durable, and may be applied. Errors are those of ``Journal``."""
        with self._journal(id) as journal:
            journal.append(entry)

    def next_number(self, id: str) -> int:
        """Of the next command."""
        with self._journal(id) as journal:
            return journal.next_number()

    def entries(self, id: str, *, since: int = 0) -> list[JournalEntry]:
        """Commands that apply at block ``since`` or later, oldest first. Errors are those of ``Journal``."""
        with self._journal(id) as journal:
            return journal.entries(since)

    def forget(self, id: str, until: int) -> None:
        """Remove the commands up to this number, of which the others stay whole. Errors are those of ``Journal``."""
        with self._journal(id) as journal:
            journal.forget(until)

    def refuse(self, id: str, number: int, error: str) -> None:
        """Note why a command was not applied."""
        with self._journal(id) as journal:
            journal.refuse(number, error)

    @contextlib.contextmanager
    def _part(self, id: str, part: Part, *, new: bool = False) -> Iterator[str]:
        """The folder of a stream, whose part is this thread's alone within."""
        folder = f"{_STREAMS}/{id}"
        with self._guard:
            lock = self._locks.setdefault((id, part), threading.Lock())
        with lock:
            if not new and not (_ID.fullmatch(id) and self._objects.holds(f"{folder}/stream.json")):
                with self._guard:
                    self._locks.pop((id, part), None)
                raise UnknownStreamError(f"There is no stream '{id:.80}'.")
            yield folder

    @contextlib.contextmanager
    def _points(self, id: str) -> Iterator[Points]:
        with self._part(id, "points") as folder:
            yield Points(self._objects, f"{folder}/points")

    @contextlib.contextmanager
    def _journal(self, id: str) -> Iterator[Journal]:
        with self._part(id, "journal") as folder:
            yield Journal(self._objects, f"{folder}/journal")

    def _ids(self) -> list[str]:
        return sorted(
            name for name, size in self._objects.sizes(_STREAMS).items() if size is None and _ID.fullmatch(name)
        )

    def _tidy(self) -> None:
        """Remove what kills have left: deletions that were cut, and files that were never whole."""
        for id in self._ids():
            folder = f"{_STREAMS}/{id}"
            there = self._objects.sizes(folder).keys()
            if "stream.json" not in there:
                if there <= {"points", "journal"}:  # and nothing that somebody else has put there
                    self._objects.remove(folder)
                continue
            for inside in (folder, f"{folder}/points", f"{folder}/journal"):
                self._objects.tidy(inside)


def _damaged(id: str, error: str) -> StreamRecord:
    return StreamRecord(
        id=id,
        created=0.0,
        request=StreamRequest(prompt="", seed=0),
        model_hash="",
        width=0,
        height=0,
        fps=0,
        state="failed",
        error=error,
    )
