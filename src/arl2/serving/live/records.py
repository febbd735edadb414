"""Records of a store as JSON: every field checked when it is read, and when it is written, so that it can be read."""

import json
from dataclasses import asdict
from typing import Any, TypeVar

from arl2.errors import ConfigError
from arl2.files.plain import parse_json
from arl2.files.records import record_from_mapping
from arl2.serving.live.objects import Objects, StoreError

Record = TypeVar("Record")
LIMIT = 4_000_000  # bytes of one record
MOST = 2**63 - 1  # of any number counted here


def write_record(objects: Objects, name: str, record: Any) -> None:
    """Write a dataclass of plain values.

    Raises:
        ConfigError: text that is no Unicode, a number that is not finite, a value JSON does not know, or too much.
        StoreError: the system refuses.
    """
    try:
        data = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False).encode()
        _check(record_from_mapping(type(record), parse_json(data.decode())))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"This cannot be kept: {error}") from error
    if len(data) > LIMIT:
        raise ConfigError(f"This cannot be kept: it has {len(data):,} bytes, and at most {LIMIT:,} are accepted.")
    objects.write(name, data)


def read_record(objects: Objects, name: str, kind: type[Record]) -> Record:
    """Read a dataclass.

    Raises:
        StoreError: the system refuses, or the object is damaged; it is named.
    """
    data = objects.read(name, limit=LIMIT)
    try:
        content = parse_json(data.decode())
        if not isinstance(content, dict):
            raise ConfigError("it holds no JSON object")
        record = record_from_mapping(kind, content)
        _check(record)
    except ValueError as error:
        raise StoreError(f"'{name}' in the store '{objects.place}' is damaged: {error}") from error
    return record


def _check(record: Any) -> None:
    """No number counted in a record is negative or beyond what other parts can hold."""
    for name, value in vars(record).items():
        for one in value if isinstance(value, tuple | list) else (value,):
            if type(one) in (int, float) and not 0 <= one <= MOST:
                raise ConfigError(f"The setting '{name}' takes a number from 0; got {one!r:.40}.")
