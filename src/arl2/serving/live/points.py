"""The kept points of a stream: the bytes of each snapshot, and a record that names them and says their checksum."""

import hashlib
import logging
import re
from dataclasses import dataclass

from arl2.serving.live.objects import Objects, StoreError
from arl2.serving.live.records import MOST, read_record, write_record
from arl2.serving.live.wire import Point, UnknownStreamError

logger = logging.getLogger(__name__)

_RECORD = re.compile(r"(?P<block>[0-9]{8,19})\.json")
_DATA = re.compile(r"[0-9]{8,19}\.[0-9a-f]{16}\.arl2")


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A point, and the bytes that belong to it. Their name has their checksum: another point never shares it."""

    point: Point
    data: str
    size: int
    digest: str


class Points:
    """The points in one folder of a store. Not thread-safe: ``StreamStore`` sees to that."""

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._folder = objects, folder

    def add(self, point: Point, data: bytes) -> None:
        """Keep a point; one of the same block gives way when the new one is whole.

        Raises:
            StoreError: the system refuses, as when the disk is full; the points that were there stay.
            ConfigError: a prompt that is no Unicode text.
        """
        digest = hashlib.blake2b(data, digest_size=8).hexdigest()
        name = f"{point.block:08d}.{digest}.arl2"
        self._objects.write(f"{self._folder}/{name}", data)
        write_record(
            self._objects, self._record(point.block), _Kept(point=point, data=name, size=len(data), digest=digest)
        )

    def all(self) -> list[Point]:
        """Whole ones, oldest first; damaged ones are named in a warning."""
        return [kept.point for kept in self._kept()]

    def data(self, block: int) -> bytes:
        """The snapshot of a point.

        Raises:
            UnknownStreamError: no such point.
            StoreError: it is damaged, or the system refuses.
        """
        if not 0 <= block <= MOST or not self._objects.holds(self._record(block)):
            kept = [str(point.block) for point in self.all()]
            raise UnknownStreamError(
                f"No point before block {block:.0f} is kept; " + (f"kept: {', '.join(kept)}." if kept else "none is.")
            )
        return self._data(self._read(block))

    def newest(self, most: int | None) -> tuple[Point, bytes] | None:
        """The newest whole point, and its snapshot, whose block is at most ``most``; None: there is none."""
        for kept in reversed(self._kept()):
            if most is None or kept.point.block <= most:
                try:
                    return kept.point, self._data(kept)
                except StoreError as error:
                    logger.warning("%s An older point is used.", error)
        return None

    def last(self) -> Point | None:
        """The newest whole one, without reading the others and without its bytes; None: there is none."""
        sizes = self._objects.sizes(self._folder)
        for block in reversed(self._blocks(sizes)):
            try:
                kept = self._read(block)
            except StoreError as error:
                logger.warning("%s This point is left out.", error)
            else:
                if sizes.get(kept.data) == kept.size:
                    return kept.point
        return None

    def prune(self, keep: int) -> None:
        """Remove the oldest points beyond ``keep``, and bytes that belong to none, as a kill leaves them."""
        sizes = self._objects.sizes(self._folder)
        blocks = self._blocks(sizes)
        for block in blocks[: max(0, len(blocks) - keep)]:
            self._objects.remove(self._record(block))
        named = {kept.data for kept in self._kept(warn=False)}
        for name in sizes:
            if _DATA.fullmatch(name) and name not in named:
                self._objects.remove(f"{self._folder}/{name}")

    def _kept(self, *, warn: bool = True) -> list[_Kept]:
        sizes = self._objects.sizes(self._folder)
        found = []
        for block in self._blocks(sizes):
            try:
                kept = self._read(block)
                if sizes.get(kept.data) != kept.size:
                    raise StoreError(f"The snapshot of '{self._record(block)}' is missing or cut off.")
            except StoreError as error:
                if warn:
                    logger.warning("%s This point is left out.", error)
            else:
                found.append(kept)
        return found

    def _read(self, block: int) -> _Kept:
        kept = read_record(self._objects, self._record(block), _Kept)
        if kept.point.block != block or not _DATA.fullmatch(kept.data):
            raise StoreError(f"'{self._record(block)}' in the store '{self._objects.place}' is damaged.")
        return kept

    def _data(self, kept: _Kept) -> bytes:
        name = f"{self._folder}/{kept.data}"
        data = self._objects.read(name, limit=kept.size)
        if len(data) != kept.size or hashlib.blake2b(data, digest_size=8).hexdigest() != kept.digest:
            raise StoreError(f"'{name}' in the store '{self._objects.place}' is damaged: its checksum is another.")
        return data

    def _record(self, block: int) -> str:
        return f"{self._folder}/{block:08d}.json"

    @staticmethod
    def _blocks(sizes: dict[str, int | None]) -> list[int]:
        names = [_RECORD.fullmatch(name) for name in sizes]
        return sorted(block for found in names if found is not None and (block := int(found["block"])) <= MOST)
