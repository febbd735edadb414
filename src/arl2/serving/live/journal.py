"""The commands of a stream, each an object of its own: durable before it is applied, and replayed after a kill."""

import logging
import re
from dataclasses import dataclass, replace

from arl2.serving.live.objects import Objects, StoreError
from arl2.serving.live.records import MOST, read_record, write_record
from arl2.serving.live.wire import Command

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<number>[0-9]{8,19})\.json")


@dataclass(frozen=True)
class JournalEntry:
    """A command as it is kept.

    Attributes:
        number: from 1, in the order in which commands were given.
        block: the block before which it applies; never goes down from one number to the next.
        command: itself.
        refused: why it was not applied.
    """

    number: int
    block: int
    command: Command
    refused: str | None = None


class Journal:
    """The entries in one folder of a store. Not thread-safe: ``StreamStore`` sees to that."""

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._folder = objects, folder

    def next_number(self) -> int:
        """Of the next entry; numbers of damaged ones are not used again."""
        return max(self._numbers(), default=0) + 1

    def append(self, entry: JournalEntry) -> None:
        """Keep an entry of a new number.

        Raises:
            StoreError: the number is taken, or the system refuses.
            ConfigError: what cannot be read again, such as text that is no Unicode.
        """
        if entry.number < 1 or self._objects.holds(self._name(entry.number)):
            raise StoreError(
                f"Command {entry.number} of '{self._folder}' is there already; the next one is {self.next_number()}."
            )
        write_record(self._objects, self._name(entry.number), entry)

    def refuse(self, number: int, error: str) -> None:
        """Note why a command was not applied."""
        write_record(self._objects, self._name(number), replace(self._read(number), refused=error))

    def entries(self, since: int) -> list[JournalEntry]:
        """Those that apply at block ``since`` or later, oldest first, refused ones too.

        A newest entry that is damaged was never applied, since an entry is whole before its command is: it is left
        out with a warning.

        The oldest may be gone, see ``forget``: then the first one here has another number than 1.

        Raises:
            StoreError: one between others is damaged or missing, so that what followed cannot be replayed.
        """
        found: list[JournalEntry] = []
        # From the newest, so that an old journal is not read whole.
        for number in sorted(self._numbers(), reverse=True):
            try:
                entry = self._read(number)
            except StoreError as error:
                if found:
                    raise
                logger.warning("%s This command, which was never applied, is left out.", error)
                continue
            if found and (number != found[-1].number - 1 or entry.block > found[-1].block):
                raise self._gap(found[-1].number - 1)
            if entry.block < since:
                return found[::-1]
            found.append(entry)
        return found[::-1]

    def forget(self, until: int) -> None:
        """Remove the entries up to this number, the oldest first, so that a kill leaves no gap."""
        for number in sorted(self._numbers()):
            if number <= until:
                self._objects.remove(self._name(number))

    def _gap(self, number: int) -> StoreError:
        return StoreError(
            f"'{self._name(number)}' in the store '{self._objects.place}' is missing or damaged, so that the commands "
            "after it cannot be given again."
        )

    def _read(self, number: int) -> JournalEntry:
        entry = read_record(self._objects, self._name(number), JournalEntry)
        if entry.number != number:
            raise StoreError(f"'{self._name(number)}' is damaged: it says that it is command {entry.number}.")
        return entry

    def _numbers(self) -> list[int]:
        names = [_NAME.fullmatch(name) for name in self._objects.sizes(self._folder)]
        numbers = [int(found["number"]) for found in names if found is not None]
        return [number for number in numbers if 0 < number <= MOST]

    def _name(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"
