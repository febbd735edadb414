"""One server for one store, or the processes of one cluster. A folder's lock is the system's; an address has none, so
there a server signs in: one that is alone as ``server.lock``, a process of a cluster under ``sharing``. Whoever signs
in looks for the other kind after it has written, so that of two at the same moment at least one gives way.

What a server leaves at an address when it is killed is taken over at once where it ran on this machine, and
otherwise when it has not been renewed for a minute.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass

from arl2.errors import Arl2Error
from arl2.files.locks import open_to_lock, take_lock, writer_of
from arl2.files.plain import parse_json
from arl2.files.records import record_from_mapping
from arl2.files.regular import first_line
from arl2.serving.live.objects import FolderObjects, Objects, StoreError

logger = logging.getLogger(__name__)

NAME = "server.lock"
SHARING = "sharing"  # folder with a note of each process that shares the store
_LIMIT = 10_000  # bytes
_RENEWED_EVERY, _DEAD_AFTER = 15.0, 60.0  # seconds
_held_here: set[str] = set()  # marks of this process


@dataclass(frozen=True, kw_only=True)
class _Holder:
    process: int
    host: str
    mark: str
    renewed: float


class PlaceLock:
    """Held from its making to ``close``.

    Args:
        objects: of the place.
        shared: with others that share it; otherwise alone.

    Raises:
        StoreError: another server, in this process or another, uses the store, and one of the two is to be alone.
    """

    def __init__(self, objects: Objects, *, shared: bool = False) -> None:
        self._objects, self._shared = objects, shared
        self._lost = False
        self._name, self._confirmed = NAME, 0.0
        self._handle: int | None = None
        self._mark = ""  # of a note at an address
        self._ended = threading.Event()
        self._renewal = threading.Lock()
        self._renewing: threading.Thread | None = None
        if isinstance(objects, FolderObjects):
            self._lock_folder(objects)
        else:
            self._sign_in()

    def close(self) -> None:
        """Let go; a second call does nothing."""
        self._ended.set()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self._renewing is not None:
            self._renewing.join()
            self._renewing = None
            self._sign_out()

    def require(self) -> None:
        """Before anything is written.

        Raises:
            StoreError: another server has taken the store, as after this one stood still for a minute.
        """
        if self._mark and not self._lost and time.time() - self._confirmed > _DEAD_AFTER / 2:
            self._confirm()
        if self._lost:
            raise StoreError(
                f"Another server has taken the store '{self._objects.place}', and this one writes nothing there any "
                "more; end one of the two."
            )

    def _lock_folder(self, objects: FolderObjects) -> None:
        path = objects.folder / NAME
        try:
            path.touch()
            handle = open_to_lock(path)
        except OSError as error:
            raise StoreError(
                f"The store '{objects.place}' cannot be used ({error.strerror}); choose another place."
            ) from error
        try:
            if not take_lock(handle, shared=self._shared):
                logger.warning(
                    "'%s' is on a file system without locks: see to it that no other server uses it.", objects.place
                )
        except BlockingIOError as error:
            os.close(handle)
            raise _in_use(objects.place, writer_of(path)) from error
        self._handle = handle

    def _sign_in(self) -> None:
        self._refuse_if_used()
        self._mark = secrets.token_hex(8)
        if self._shared:
            self._name = f"{SHARING}/{self._mark}.json"
        _held_here.add(self._mark)
        try:
            self._write()
            if not self._is_ours():  # another server has signed in at the same moment
                raise _in_use(self._objects.place, "another process")
            self._refuse_if_used(signed_in=True)
        except StoreError:
            self._sign_out()
            raise
        self._renewing = threading.Thread(target=self._renew, name="arl2-store-lock", daemon=True)
        self._renewing.start()

    def _sign_out(self) -> None:
        _held_here.discard(self._mark)
        try:
            if self._is_ours():
                self._objects.remove(self._name)
        except StoreError as error:  # the next server finds that this one is gone
            logger.warning("%s", error)

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_EVERY):
            try:
                self._confirm()
            except Arl2Error as error:
                logger.warning("%s", error)
            if self._lost:
                return

    def _confirm(self) -> None:
        """Renew the note, or learn that the store was taken."""
        with self._renewal:
            if self._lost:
                return
            if self._shared:
                self._write()  # nobody else writes this note; it may have been removed as a dead one's
                other = self._read(NAME)
                self._lost = other is not None and _lives(other)
            elif self._is_ours():
                self._write()
            else:
                self._lost = True
            if self._lost:
                logger.error("Another server has taken the store '%s'; end one of the two.", self._objects.place)
                self._sign_out()

    def _refuse_if_used(self, *, signed_in: bool = False) -> None:
        """By one that is alone; or by any that share it, if this one is to be alone."""
        names = [] if signed_in and not self._shared else [NAME]
        if not self._shared:
            names += [f"{SHARING}/{name}" for name in self._objects.sizes(SHARING) if name.endswith(".json")]
        for name in names:
            found = self._read(name)
            if found is not None and _lives(found):
                raise _in_use(self._objects.place, f"process {found.process} on {found.host}")
            if found is not None and name != NAME and self._objects.holds(name):  # what a killed one has left
                self._objects.remove(name)

    def _write(self) -> None:
        now = time.time()
        holder = _Holder(process=os.getpid(), host=socket.gethostname(), mark=self._mark, renewed=now)
        self._objects.write(self._name, json.dumps(asdict(holder)).encode())
        self._confirmed = now

    def _is_ours(self) -> bool:
        found = self._read(self._name)
        return found is not None and found.mark == self._mark

    def _read(self, name: str) -> _Holder | None:
        if not self._objects.holds(name):
            return None
        try:
            data = self._objects.read(name, limit=_LIMIT)
        except StoreError:
            if self._objects.holds(name):
                raise
            return None  # removed at this moment
        try:
            content = parse_json(data.decode())
            return record_from_mapping(_Holder, content if isinstance(content, dict) else {})
        except ValueError as error:  # of a writer that was killed
            logger.warning("'%s' in '%s' is no lock (%s).", name, self._objects.place, first_line(error))
            return None


class HeldObjects(Objects):
    """Objects that are written and removed only while their place is held: afterwards ``StoreError``."""

    def __init__(self, objects: Objects, lock: PlaceLock) -> None:
        self._objects, self._lock, self.place = objects, lock, objects.place

    def read(self, name: str, *, limit: int) -> bytes:
        return self._objects.read(name, limit=limit)

    def write(self, name: str, data: bytes) -> None:
        self._lock.require()
        self._objects.write(name, data)

    def holds(self, name: str) -> bool:
        return self._objects.holds(name)

    def sizes(self, folder: str) -> dict[str, int | None]:
        return self._objects.sizes(folder)

    def remove(self, name: str) -> None:
        self._lock.require()
        self._objects.remove(name)

    def tidy(self, folder: str) -> None:
        self._lock.require()
        self._objects.tidy(folder)


def _lives(holder: _Holder) -> bool:
    if holder.mark in _held_here:
        return True
    # A process that was restarted in a container often has its predecessor's number.
    gone = holder.process == os.getpid() or not _is_process(holder.process)
    if holder.host == socket.gethostname() and gone:
        return False
    return time.time() - holder.renewed < _DEAD_AFTER


def _is_process(number: int) -> bool:
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _in_use(place: str, who: str) -> StoreError:
    return StoreError(
        f"The store '{place}' is in use by {who}; end that server, or give this one a store of its own with --store."
    )
