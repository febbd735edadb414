"""A folder of measurements, each made once; processes that share the folder share the work.

A measurement is named by everything that it depends on. It is made under a lock that the system lets go of when the
process ends, however it ends; so whatever was killed is measured again, and nothing is measured twice.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arl2.errors import ConfigError
from arl2.files.atomic import write_atomically

Facts = Mapping[str, Any]


class Measurements:
    """The folder.

    Args:
        folder: made if it is not there.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"'{folder}' cannot be written ({error}); give another place.") from error

    def known(self, facts: Facts) -> dict[str, Any] | None:
        """What was measured for these facts; None if nothing was."""
        path = self._path(facts)
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
        return result

    def make(self, facts: Facts, measure: Callable[[], Mapping[str, Any]], *, wait: bool = True) -> bool:
        """Measure, unless it is known.

        Args:
            facts: everything that the result depends on, plain values.
            measure: gives the result, plain values.
            wait: for another process that is measuring the same; otherwise leave it to that one.

        Returns:
            Whether the result is known now.
        """
        path = self._path(facts)
        if path.exists():
            return True
        with _locked(path.with_suffix(".lock"), wait=wait) as mine:
            if mine and not path.exists():
                said = {"facts": dict(facts), "result": dict(measure())}
                write_atomically(path, (json.dumps(said, indent=1) + "\n").encode())
        return path.exists()

    def _path(self, facts: Facts) -> Path:
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / f"{name}.json"


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process alone holds the lock."""
    import fcntl  # not on every system, and only needed here

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
