"""What lies beside tensors: JSON and TOML, and the index that says which files a folder's weights are in."""

import json
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arl2.errors import Arl2Error, CheckpointError, ConfigError
from arl2.files.regular import first_line, read_bytes, read_text

# How the names of files of tensors end; those of pickles are read with code disabled.
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (*PICKLES, ".safetensors")
# Bytes. Parsed, a text of nothing but brackets takes twenty times as much.
JSON_LIMIT = 16_000_000
_DEEPEST = 100
_LONGEST_NAME = 200  # characters: no file system takes many more
_HALF_A_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # of UTF-16; two of them may make one


def read_json(path: Path, *, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Args:
        limit: bytes of the largest file that is read.

    Raises:
        CheckpointError: no such file, or one that is not a JSON object, is too large or is nested too deeply.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is not there; give the whole folder.")
    content = read_json_value(path, limit=limit)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a JSON object is needed.")
    return content


def read_json_value(path: Path, *, limit: int = JSON_LIMIT, error: type[Arl2Error] = CheckpointError) -> Any:
    """The JSON value in a file.

    Args:
        limit: bytes of the largest file that is read.
        error: what is raised.

    Raises:
        error: no such file, or one that is not JSON, is too large or is nested too deeply.
    """
    try:
        return parse_json(read_bytes(path, limit=limit, error=error).decode("utf-8-sig"))
    except Arl2Error:
        raise
    except ValueError as wrong:
        raise error(
            f"{path} is not readable JSON ({first_line(wrong)}); correct it, or delete it and make or fetch it again."
        ) from wrong


def read_json_lines(
    path: Path, *, limit: int, error: type[Arl2Error] = ConfigError
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file that has one on each line, with their line numbers from 1; empty lines are skipped.

    Raises:
        error: as ``read_json_value``, or a line that is no JSON object; the line is named.
    """
    return json_lines_of(read_text(path, limit=limit, error=error), path, error=error)


def json_lines_of(
    text: str, path: Path, *, error: type[Arl2Error] = ConfigError, finite: bool = True
) -> Iterator[tuple[int, dict[str, Any]]]:
    """``read_json_lines`` of a text that was read from ``path``; ``finite`` as for ``parse_json``."""
    # Not splitlines: a text may hold other separators of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, finite=finite)
        except ValueError as wrong:
            raise error(f"'{path}', line {number}: this is not JSON ({first_line(wrong)}).") from wrong
        if not isinstance(entry, dict):
            raise error(f"'{path}', line {number}: this is a {type(entry).__name__}; a line is a JSON object.")
        yield number, entry


def read_toml(path: Path, *, limit: int, error: type[Arl2Error] = ConfigError) -> dict[str, Any]:
    """The values in a TOML file.

    Raises:
        error: as ``read_text``, or a file that is not TOML.
    """
    try:
        return tomllib.loads(read_text(path, limit=limit, error=error))
    except (tomllib.TOMLDecodeError, RecursionError) as wrong:
        raise error(f"'{path}' is not TOML ({first_line(wrong)}); correct it.") from wrong


def parse_json(text: str, *, finite: bool = True) -> Any:
    """The value of a JSON text; without ``finite`` also NaN and infinity, which Python writes.

    Raises:
        ValueError: not JSON, a key that appears twice in an object, a number that is not finite or has thousands of
            digits, a text that is no Unicode, or values nested more than 100 deep.
    """
    try:
        numbers: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
        content = json.loads(text, object_pairs_hook=_without_repeats, **numbers)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {_DEEPEST} deep") from error
    if _HALF_A_CHARACTER.search(text):
        json.dumps(content, ensure_ascii=False).encode()
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
    return content


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits[:20])


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key '{name}' appears twice")
        values[name] = value
    return values


def shard_names(index: Path) -> list[str]:
    """The names of the files that hold a model's tensors, sorted, from its ``*.safetensors.index.json``.

    Raises:
        CheckpointError: no index of weights, or one that names anything but ``.safetensors`` files beside it.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; delete it and download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # A name from a file must not lead out of its folder.
        if name != Path(name).name or not name.endswith(".safetensors") or len(name) > _LONGEST_NAME:
            raise CheckpointError(
                f"{index} names the shard {name!r:.80}; it must be a .safetensors file in the same folder."
            )
    return names


def safetensors_of(folder: Path) -> list[Path]:
    """The files of a folder's weights: its one ``.safetensors`` file, or the shards that its index names.

    Raises:
        CheckpointError: none, several without an index, or a shard that is not there.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        files = [folder / name for name in shard_names(indexes[0])]
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{folder} lacks {file.name}, which its index names; download it again.")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no .safetensors file; give the folder that holds the weights.")
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} has {len(files)} .safetensors files and no index "
            f"({', '.join(file.name for file in files[:4])}); name the one to load, or add its index."
        )
    return files
