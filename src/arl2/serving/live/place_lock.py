"""One server for one store. A folder's lock is the system's; an address has none, so there a server signs in.

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

    Raises:
        StoreError: another server, in this process or another, uses the store.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._handle: int | None = None
        self._ended = threading.Event()
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
            _held_here.discard(self._mark)
            try:
                if self._is_ours():
                    self._objects.remove(NAME)
            except StoreError as error:  # the next server finds that this one is gone
                logger.warning("%s", error)

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
            if not take_lock(handle):
                logger.warning(
                    "'%s' is on a file system without locks: see to it that no other server uses it.", objects.place
                )
        except BlockingIOError as error:
            os.close(handle)
            raise _in_use(objects.place, writer_of(path)) from error
        self._handle = handle

    def _sign_in(self) -> None:
        found = self._read()
        if found is not None and _lives(found):
            raise _in_use(self._objects.place, f"process {found.process} on {found.host}")
        self._mark = secrets.token_hex(8)
        self._write()
        if not self._is_ours():  # another server has signed in at the same moment
            raise _in_use(self._objects.place, "another process")
        _held_here.add(self._mark)
        self._renewing = threading.Thread(target=self._renew, name="arl2-store-lock", daemon=True)
        self._renewing.start()

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_EVERY):
            try:
                if not self._is_ours():
                    logger.error("Another server has taken the store '%s'; end one of the two.", self._objects.place)
                    return
                self._write()
            except Arl2Error as error:
                logger.warning("%s", error)

    def _write(self) -> None:
        holder = _Holder(process=os.getpid(), host=socket.gethostname(), mark=self._mark, renewed=time.time())
        self._objects.write(NAME, json.dumps(asdict(holder)).encode())

    def _is_ours(self) -> bool:
        found = self._read()
        return found is not None and found.mark == self._mark

    def _read(self) -> _Holder | None:
        if not self._objects.holds(NAME):
            return None
        try:
            content = parse_json(self._objects.read(NAME, limit=_LIMIT).decode())
            return record_from_mapping(_Holder, content if isinstance(content, dict) else {})
        except ValueError as error:  # of a writer that was killed
            logger.warning("'%s' in '%s' is no lock (%s).", NAME, self._objects.place, first_line(error))
            return None


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
