"""Extensions: packages that add models, codecs, text parts, attention kinds or training tasks of their own.

An extension is a function without arguments that calls ``register`` of the registries it adds to. A package names it
in its ``pyproject.toml``, and it is called once, when a registry is read first::

    [project.entry-points."arl2.extensions"]
    mine = "my_package.arl2_extension:register"

Registries hold class names (``"module:Class"``), so registering imports nothing large. Attention kinds are the
exception: they are registered as classes (:func:`arl2.attention.plan.register`).
"""

import functools
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from arl2.errors import ConfigError, suggestion

GROUP = "arl2.extensions"
# What ships in this package. Its entry point says the same; this list serves a source tree that is not installed.
BUILT_IN = ("arl2.shapes.extension:register",)

Entry = TypeVar("Entry")
_lock = threading.RLock()
_loaded: set[str] = set()


def load_extensions() -> None:
    """Call every extension that has not been called yet.

    Raises:
        ConfigError: an extension that cannot be imported or that fails.
    """
    with _lock:
        for place in _places():
            if place in _loaded:
                continue
            _loaded.add(place)  # first, as an extension may read a registry itself
            try:
                named(place)()
            except Exception as error:
                _loaded.discard(place)
                raise ConfigError(
                    f"The extension '{place}' failed ({type(error).__name__}: {error}); update or "
                    "uninstall its package."
                ) from error


def named(place: str) -> Any:
    """The object that ``"module:name"`` names; its module is imported."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


class Registry(Mapping[str, Entry]):
    """Things by name that extensions add to, which are loaded when it is read first.

    What extensions added comes first: it is installed here, while some of the built-in entries must be downloaded.

    Args:
        what: one of them, for error messages.
        built_in: entries that are always there.
    """

    def __init__(self, what: str, built_in: Mapping[str, Entry] | None = None) -> None:
        self.what = what
        self._built_in: dict[str, Entry] = dict(built_in or {})
        self._added: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> None:
        """Add an entry; the same one again changes nothing.

        Raises:
            ConfigError: another entry has this name.
        """
        present = self._added.get(name, self._built_in.get(name))
        if present is None:
            self._added[name] = entry
        elif present != entry:
            raise ConfigError(f"There is another {self.what} named '{name}' already; choose another name.")

    def find(self, name: str, *, error: Callable[[str], Exception] = ConfigError) -> Entry:
        """The entry of that name; without one, an ``error`` that suggests the nearest."""
        if name not in self:
            raise error(f"There is no {self.what} named {name!r}. {suggestion(name, self)}")
        return self[name]

    def __getitem__(self, name: str) -> Entry:
        load_extensions()
        return self._added[name] if name in self._added else self._built_in[name]

    def __iter__(self) -> Iterator[str]:
        load_extensions()
        return iter([*self._added, *self._built_in])

    def __len__(self) -> int:
        load_extensions()
        return len(self._added) + len(self._built_in)


@functools.cache
def _places() -> list[str]:
    found = sorted(entry.value for entry in entry_points(group=GROUP))
    return list(dict.fromkeys([*BUILT_IN, *found]))
