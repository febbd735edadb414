"""What is kept of one stream, and from where it can continue: its record, its points and its journal.

Every command is durable before it is applied, with the block before which it applies; a stream that was killed
continues from a point, gets the commands of the journal again at their blocks, and makes the same bits.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from arl2.errors import StreamError
from arl2.serving.live.journal import JournalEntry
from arl2.serving.live.objects import StoreError
from arl2.serving.live.store import StreamRecord, StreamStore
from arl2.serving.live.wire import Command, Point, UnknownStreamError

logger = logging.getLogger(__name__)

_MOST_OLD = 256  # commands before the oldest point, and prompts of those that are gone
_BEHIND = 2  # blocks by which other viewers may be behind the one for whom a stream wakes
_NEAR = 8  # blocks that are made again at most for them


@dataclass(frozen=True)
class Start:
    """Where a stream begins again.

    Attributes:
        point: None: at its very beginning.
        entries: of the journal that are applied then, oldest first.
    """

    point: Point | None
    entries: tuple[JournalEntry, ...]


class History:
    """One stream in a store; any thread may call.

    Args:
        store: where it is kept.
        record: of the stream, as it is there.
        keep: points that are kept; the oldest go first.
    """

    def __init__(self, store: StreamStore, record: StreamRecord, *, keep: int) -> None:
        self._store, self._record, self._keep = store, record, keep
        self._guard = threading.RLock()
        self._points: tuple[Point, ...] = ()
        self._entries: list[JournalEntry] = []
        self._prompts = record.prompts or ((record.block, record.request.prompt),)
        self._number = 1

    @classmethod
    def read(cls, store: StreamStore, record: StreamRecord, *, keep: int) -> "History":
        """Of a stream that is in the store already.

        Raises:
            StoreError: it is damaged beyond what an older point mends.
        """
        found = cls(store, record, keep=keep)
        found._points = tuple(store.points(record.id))
        for entry in store.entries(record.id):
            found._remember(entry)
        found._number = store.next_number(record.id)
        return found

    @property
    def record(self) -> StreamRecord:
        """As it was written last."""
        return self._record

    @property
    def points(self) -> tuple[Point, ...]:
        """Kept, oldest first."""
        return self._points

    @property
    def prompts(self) -> tuple[tuple[int, str], ...]:
        """Those that the stream has had and the block at which each begins, oldest first."""
        return self._prompts

    @property
    def last_command_block(self) -> int:
        """The block of the last command: none applies earlier."""
        return self._entries[-1].block if self._entries else self._record.block

    @property
    def next_block(self) -> int:
        """That a stream which sleeps would make first; commands may say that it was further."""
        return self._points[-1].block if self._points else self._record.block

    @property
    def next_frame(self) -> int:
        """The first frame of that block."""
        return self._points[-1].frame if self._points else self._record.frame

    def change(self, **changes: Any) -> None:
        """Write the record with these fields changed.

        Raises:
            UnknownStreamError: it was deleted since; nothing is written then.
            StoreError: the system refuses.
        """
        with self._guard:
            changed = replace(self._record, **changes)
            if changed != self._record:
                self._store.write(changed, new=False)
                self._record = changed

    def end(self, **changes: Any) -> None:
        """As ``change``, for a stream that is over: where the store refuses, it is known here at least."""
        try:
            self.change(**changes)
        except (StoreError, UnknownStreamError) as error:
            logger.warning("stream %s: %s", self._record.id, error)
            self.assume(**changes)

    def assume(self, **changes: Any) -> None:
        """As ``change``, without writing it."""
        with self._guard:
            self._record = replace(self._record, **changes)

    def note(self, command: Command, block: int) -> JournalEntry:
        """Keep a command that is about to be applied before a block.

        Raises:
            StoreError: the system refuses; then it must not be applied.
        """
        with self._guard:
            entry = JournalEntry(self._number, block, command)
            self._store.append(self._record.id, entry)
            self._number += 1
            self._remember(entry)
            return entry

    def refuse(self, entry: JournalEntry, error: str) -> None:
        """It was not applied after all."""
        with self._guard:
            kept = [one for one in self._entries if one.number != entry.number]
            before = self._record.prompts or ((self._record.block, self._record.request.prompt),)
            self._entries, self._prompts = [], before
            for one in sorted((*kept, replace(entry, refused=error)), key=lambda one: one.number):
                self._remember(one)
            self._store.refuse(self._record.id, entry.number, error)

    def add_point(self, point: Point, data: bytes) -> None:
        """Keep a point, and let the oldest go; one of the same block is replaced.

        Raises:
            StoreError: the system refuses; the points before stay.
        """
        self._store.add_point(self._record.id, point, data)
        with self._guard:
            others = [one for one in self._points if one.block != point.block]
            self._points = tuple(sorted((*others, point), key=lambda one: one.block))[-self._keep :]
        self._store.prune(self._record.id, self._keep)
        self._forget_old()

    def point_at(self, block: int) -> Point:
        """The kept point before a block.

        Raises:
            StreamError: there is none; the message names the nearest ones.
        """
        points = self._points
        if found := [one for one in points if one.block == block]:
            return found[0]
        near = sorted(sorted(points, key=lambda one: abs(one.block - block))[:3], key=lambda one: one.block)
        kept = f"the nearest are {_listed(near)}" if near else "none is kept yet"
        raise StreamError(f"No point is kept before block {block}; {kept}.")

    def point_back(self, blocks: int, *, now: int) -> Point:
        """The newest kept point that is at least so many blocks back.

        Raises:
            StreamError: there is none.
        """
        found = [one for one in self._points if one.block <= now - blocks]
        if not found:
            oldest = f"the oldest is {now - self._points[0].block} blocks back" if self._points else "none is kept yet"
            raise StreamError(f"No point is kept {blocks} blocks back; {oldest}.")
        return found[-1]

    def data(self, block: int) -> bytes:
        """The snapshot of a point.

        Raises:
            UnknownStreamError: it is gone.
            StoreError: it is damaged.
        """
        return self._store.point_bytes(self._record.id, block)

    def starts(self, after: int | None, *, most_again: int) -> list[Start]:
        """From where the stream can continue, the best first; the others serve where a point turns out damaged.

        Args:
            after: the last block that a viewer has shown: blocks after it are made again; None or -1: the newest.
            most_again: blocks that are made again at most for that viewer.
        """
        with self._guard:
            points, entries = self._points, list(self._entries)
        newest = points[-1].block if points else self._record.block
        wanted, for_viewer = newest, after is not None and after >= 0 and newest - (after + 1) <= most_again
        if after is not None and for_viewer:
            wanted = after + 1
        ordered: list[Point | None] = [one for one in reversed(points) if one.block <= wanted]
        later = [one for one in points if one.block > wanted]  # with them a viewer misses blocks
        # Forks and resumed streams begin at a point.
        if self._record.block == 0 and self._record.parent is None and (not entries or entries[0].number == 1):
            ordered = [*ordered, None, *later] if wanted <= most_again else [*ordered, *later, None]
        else:
            ordered += later
        if for_viewer:  # others may come who have seen a little less
            near = range(wanted - _NEAR, wanted - _BEHIND + 1)
            ordered.sort(key=lambda one: (0 if one is None else one.block) not in near)
        found = []
        for point in ordered:
            start = Start(point, tuple(one for one in entries if _applies_after(one, point)))
            targets = [one.command.block for one in start.entries if one.command.action == "rewind"]
            # A rewind whose target is gone cannot be done again; a newer point has it in it.
            if {one.block for one in points} >= set(targets):
                found.append(start)
        return found

    def _remember(self, entry: JournalEntry) -> None:
        self._entries.append(entry)
        self._prompts = _prompts_with(self._prompts, entry)

    def _forget_old(self) -> None:
        """Commands before the oldest point go, so that a stream of months takes no more than one of a day.

        A few stay: with them a stream whose points are all damaged can begin again. Of those that go the record keeps
        the prompts.
        """
        with self._guard:
            old = [one for one in self._entries if one.block < self._points[0].block]
            if len(old) <= _MOST_OLD:
                return
            gone = old[:-1]  # numbers go on from the last one
            prompts = self._record.prompts or ((self._record.block, self._record.request.prompt),)
            for entry in gone:
                prompts = _prompts_with(prompts, entry)
            self.change(prompts=prompts[-_MOST_OLD:])
            self._entries = self._entries[len(gone) :]
            self._prompts = self._prompts[-_MOST_OLD - len(self._entries) :]
            self._store.forget(self._record.id, gone[-1].number)


def with_prompt(prompts: Sequence[tuple[int, str]], block: int, prompt: str) -> tuple[tuple[int, str], ...]:
    """Prompts and the block at which each begins, with another one that begins last."""
    before = [one for one in prompts if one[0] < block]
    return tuple(before) if before and before[-1][1] == prompt else (*before, (block, prompt))


def _prompts_with(prompts: tuple[tuple[int, str], ...], entry: JournalEntry) -> tuple[tuple[int, str], ...]:
    command = entry.command
    if entry.refused is None and command.action in ("prompt", "rewind") and command.prompt is not None:
        return with_prompt(prompts, entry.block, command.prompt)
    return prompts


def new_point(*, block: int, frame: int, index: int, prompt: str, entry: int) -> Point:
    """A point of now."""
    return Point(block=block, frame=frame, index=index, prompt=prompt, made=time.time(), entry=entry)


def _applies_after(entry: JournalEntry, point: Point | None) -> bool:
    if entry.refused is not None:
        return False
    return point is None or (entry.block, entry.number) > (point.block, point.entry)


def _listed(points: Sequence[Point]) -> str:
    numbers = [str(one.block) for one in points]
    return numbers[0] if len(numbers) == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}"
