"""Strict records: a dataclass filled from plain values. An unknown name, a missing one or a wrong type is an error.

One reader for every file of settings: pipelines, training runs, scripts, manifests.
"""

import inspect
import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from arl2.errors import Arl2Error, ConfigError, suggestion

Record = TypeVar("Record")
_LARGEST_NUMBER = sys.float_info.max


class Word(str):
    """Text that was typed as ``name=value``. Where a setting is a list, commas part its values, and a second word adds.

    Attributes:
        listed: the values of the list.
    """

    listed: tuple[Any, ...]

    def __new__(cls, text: str, before: "Word | None" = None) -> "Word":
        word = super().__new__(cls, text)
        word.listed = (*(() if before is None else before.listed), *map(typed, filter(None, text.split(","))))
        return word


def typed(text: str) -> Any:
    """A typed value: JSON, or else text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


_NAME_SHOWN = 80  # characters
_LARGEST_SIZE, _LONGEST = 10_000_000, 10_000  # of a model: no width, and no list of widths, comes near


def record_from_mapping(kind: type[Record], values: Mapping[str, Any], *, where: str = "", inside: str = "") -> Record:
    """Build the dataclass ``kind``, and dataclasses nested in it, from plain values.

    Only what loses nothing is converted: a list to a tuple, an int to a float.

    Args:
        where: what errors begin with, such as a file's name.
        inside: name of the record that this one is nested in, with a dot at its end.

    Raises:
        ConfigError: a name that ``kind`` does not have (the nearest is named), one without a default that is missing,
            or a value of another type.
    """
    prefix = f"{where}: " if where else ""
    types_by_name = get_type_hints(kind)
    accepted = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in accepted:
            raise ConfigError(
                f"{prefix}Unknown setting '{inside}{str(name)[:_NAME_SHOWN]}'. {suggestion(name, accepted)}"
            )
    for name, field in accepted.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{prefix}The setting '{inside}{name}' has no default; give {inside}{name}=VALUE.")
    plain = {name: _convert(types_by_name[name], value, inside + name, where) for name, value in values.items()}
    try:
        return kind(**plain)
    except Arl2Error as error:
        if not prefix or str(error).startswith(prefix):
            raise
        raise type(error)(f"{prefix}{error}") from error


def arguments_from_mapping(
    function: Callable[..., Any], values: Mapping[str, Any], *, where: str, most: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Arguments of a function, such as a model's ``__init__``, from the plain values of a file, by its type hints.

    Args:
        where: what errors begin with.
        most: the largest whole number by name, where it is less than ten million.

    Raises:
        ConfigError: a name that the function does not take, one without a default that is missing, a value of another
            type, or a number or list larger than any model has.
    """
    hints = get_type_hints(function)
    accepted = {name: one for name, one in inspect.signature(function).parameters.items() if name in hints}
    for name, value in values.items():
        if name not in accepted:
            raise ConfigError(f"{where}: Unknown setting '{name[:_NAME_SHOWN]}'. {suggestion(name, accepted)}")
        limit = (most or {}).get(name, _LARGEST_SIZE)
        if (type(value) is int and abs(value) > limit) or (isinstance(value, list | str) and len(value) > _LONGEST):
            raise ConfigError(f"{where}: The setting '{name}' is larger than any model has; got {_shown(value)}.")
    for name, one in accepted.items():
        if name not in values and one.default is inspect.Parameter.empty:
            raise ConfigError(f"{where}: The setting '{name}' is missing.")
    return {name: _convert(hints[name], value, name, where) for name, value in values.items()}


def record_to_mapping(record: Any) -> dict[str, Any]:
    """The plain values of a dataclass, as JSON can hold them, defaults included."""
    return json.loads(json.dumps(asdict(record)))


def _convert(kind: Any, value: Any, name: str, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_to_any_of(arguments, value, name, where)
    if isinstance(value, Word):
        value = value.listed if origin is tuple else str(value)
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, Mapping):
            return record_from_mapping(kind, value, where=where, inside=f"{name}.")
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {str(key): _convert(arguments[1], one, f"{name}.{key}", where) for key, one in value.items()}
    elif origin is Literal:
        if any(type(value) is type(one) and value == one for one in arguments):
            return value
    elif origin in (list, Sequence):
        if isinstance(value, list | tuple):
            return [_convert(arguments[0], one, name, where) for one in value]
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) == len(value):
                return tuple(_convert(one, x, name, where) for one, x in zip(kinds, value, strict=True))
    elif origin is dict:
        if isinstance(value, dict):
            return {key: _convert(arguments[1], one, f"{name}.{key}", where) for key, one in value.items()}
    elif kind is float and type(value) in (int, float) and abs(value) <= _LARGEST_NUMBER:
        return float(value)
    elif kind is float:
        pass  # NaN and infinity, which JSON has no names for, make every result one of them
    elif kind is Any or type(value) is kind:
        return value
    prefix = f"{where}: " if where else ""
    raise ConfigError(f"{prefix}The setting '{name}' takes {describe(kind)}; got {_shown(value)}.")


def _convert_to_any_of(kinds: tuple[Any, ...], value: Any, name: str, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds[:-1]:
        try:
            return _convert(kind, value, name, where)
        except ConfigError:
            continue
    return _convert(kinds[-1], value, name, where)


def describe(kind: Any) -> str:
    """A type as a person would say it, such as "a whole number"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else describe(one) for one in arguments)
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in arguments)
    if origin is tuple:
        return "a list of " + " and ".join(sorted({describe(x) for x in arguments if x is not Ellipsis}))
    if origin in (list, Sequence):
        return f"a list, each {describe(arguments[0])}"
    if is_dataclass(kind) or origin in (dict, Mapping):
        return "named values"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, str(kind))


def _shown(value: Any) -> str:
    """A value for a message; one that is long is cut, and not written out first."""
    if isinstance(value, list | tuple | dict) and len(value) > _NAME_SHOWN:
        return f"{type(value).__name__} of {len(value):,} values"
    return json.dumps(value, default=repr)[:200]
