"""Strict settings: dataclasses filled from JSON, TOML or ``key=value`` words; an unknown name is an error."""

import difflib
import json
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from arl2.errors import ConfigError

Config = TypeVar("Config")


def config_from_mapping(kind: type[Config], values: Mapping[str, Any], *, inside: str = "") -> Config:
    """Build the dataclass ``kind`` (and dataclasses nested in it) from plain values.

    Raises:
        ConfigError: for a name that ``kind`` does not have (the nearest one is named), one without a default that is
            missing, or a value of another type.
    """
    types_by_name = get_type_hints(kind)
    accepted = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, n=1)
            hint = f"did you mean '{inside}{near[0]}'?" if near else f"accepted are {', '.join(accepted)}."
            raise ConfigError(f"Unknown setting '{inside}{name}': {hint}")
    missing = [
        field.name
        for field in fields(kind)  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"The setting '{inside}{missing[0]}' has no default; give {inside}{missing[0]}=VALUE.")
    return kind(**{name: _convert(types_by_name[name], value, inside + name) for name, value in values.items()})


def config_to_mapping(config: Any) -> dict[str, Any]:
    """The plain values of a config dataclass, as JSON can hold them; every setting is there, defaults too."""
    return json.loads(json.dumps(asdict(config)))


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


def _convert(kind: Any, value: Any, name: str) -> Any:
    """``value`` as ``kind``; only what loses nothing is converted (a list to a tuple, an int to a float)."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_to_any_of(arguments, value, name)
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, Mapping):
            return config_from_mapping(kind, value, inside=f"{name}.")
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) == len(value):
                return tuple(_convert(one, x, name) for one, x in zip(kinds, value, strict=True))
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    raise ConfigError(f"The setting '{name}' takes {_describe(kind)}, but {json.dumps(value)} came.")


def _convert_to_any_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds[:-1]:
        try:
            return _convert(kind, value, name)
        except ConfigError:
            continue
    return _convert(kinds[-1], value, name)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of " + " and ".join(sorted({_describe(x) for x in get_args(kind) if x is not Ellipsis}))
    if is_dataclass(kind):
        return "named values"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, str(kind))


def check_share(name: str, value: float) -> None:
    """Refuse what is no share; raises ``ConfigError``."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}; give a share from 0 to 1.")
