"""Settings of a run: read from JSON or TOML, changed by ``key=value`` words, compared between runs."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from arl2.errors import ConfigError


def read_config_values(path: Path) -> dict[str, Any]:
    """Values of a ``.json`` or ``.toml`` file, unchecked: ``config_from_mapping`` checks them.

    Raises:
        ConfigError: if the file is missing, of another kind, or cannot be parsed.
    """
    readers = {".json": json.loads, ".toml": tomllib.loads}
    if path.suffix not in readers:
        raise ConfigError(f"Settings come from a .json or .toml file, but '{path}' came.")
    try:
        values = readers[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"The settings file '{path}' cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The settings file '{path}' must hold names and values, but holds {type(values).__name__}.")
    return values


def with_overrides(values: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """``values`` with words like ``loop.steps=100`` put in; a value is JSON, or else taken as text."""
    result = json.loads(json.dumps(dict(values)))
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"A setting is written name=value or part.name=value, but '{word}' came.")
        *parts, name = path.split(".")
        place = result
        for part in parts:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{word}' goes inside '{part}', which is a single value.")
        try:
            place[name] = json.loads(text)
        except json.JSONDecodeError:
            place[name] = text
    return result


def config_differences(before: Mapping[str, Any], after: Mapping[str, Any], *, inside: str = "") -> list[str]:
    """Settings that differ between two plain mappings, as ``name: before -> after``, nested names with dots."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += config_differences(old, new, inside=f"{inside}{name}.")
        elif old != new:
            lines.append(f"{inside}{name}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def check_share(name: str, value: float) -> None:
    """Refuse what is no share; raises ``ConfigError``."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}; give a share from 0 to 1.")
