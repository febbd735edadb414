"""Which worker runs a stream: a note beside the streams in their store, so that no two ever do.

The router decides who shall run a stream. The note covers the moment in which that changes: the worker that is new
begins only when the one in the note has let go, or is dead.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arl2.serving.live.objects import StoreError, open_objects
from arl2.serving.live.records import read_record, write_record


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The note.

    Attributes:
        worker: name of the worker that runs the stream.
    """

    worker: str


class Owners:
    """The notes of all streams of one store.

    Args:
        place: of the store.
        lives: whether a worker of that name is there.
    """

    def __init__(self, place: str | Path, lives: Callable[[str], bool]) -> None:
        self._objects, self._lives = open_objects(place), lives

    async def of(self, stream: str) -> str | None:
        """The worker that runs it, if one does that lives."""
        return await asyncio.to_thread(self._of, stream)

    async def take(self, stream: str, worker: str) -> None:
        """Note the worker that runs it from now on."""
        await asyncio.to_thread(write_record, self._objects, _name(stream), Owner(worker=worker))

    async def give_up(self, stream: str, worker: str) -> None:
        """Remove the note, unless it is of another worker."""
        await asyncio.to_thread(self._give_up, stream, worker)

    def _of(self, stream: str) -> str | None:
        owner = self._noted(stream)
        return owner if owner is not None and self._lives(owner) else None

    def _give_up(self, stream: str, worker: str) -> None:
        if self._noted(stream) == worker:
            self._objects.remove(_name(stream))

    def _noted(self, stream: str) -> str | None:
        if not self._objects.holds(_name(stream)):
            return None
        try:
            return read_record(self._objects, _name(stream), Owner).worker
        except StoreError:
            if self._objects.holds(_name(stream)):  # damaged; otherwise it was removed at this moment
                self._objects.remove(_name(stream))
            return None


def _name(stream: str) -> str:
    return f"owners/{stream}.json"
