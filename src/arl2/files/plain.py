"""What lies beside tensors: JSON objects, and the index that says which files a folder's weights are in."""

import json
from pathlib import Path
from typing import Any

from arl2.errors import CheckpointError, ConfigError

JSON_LIMIT = 64_000_000  # bytes; a large tokenizer has 20 MB
_INDEX_LIMIT = 16_000_000  # the published ones have a few kilobytes
_DEEPEST = 100


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a sentence of ours."""
    return str(error).strip().split("\n", maxsplit=1)[0][:200]


def read_json(path: Path, *, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        limit: bytes of the largest file that is read.

    Raises:
        CheckpointError: no such file, or one that is not a JSON object, is too large or is nested too deeply.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path} is a pipe or a device; give a regular file.")
        if path.stat().st_size > limit:
            raise CheckpointError(
                f"{path} is too large: it has {path.stat().st_size} bytes, and at most {limit} are read; delete it and "
                "fetch it again."
            )
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there; give the whole folder.") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON ({first_line(error)}); correct it, or delete it and fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a JSON object is needed.")
    return content


def read_text(path: Path, *, limit: int) -> str:
    """A text file that a person wrote, in UTF-8, with or without a byte order mark; line ends become newlines.

    Args:
        limit: bytes of the largest file that is read.

    Raises:
        ConfigError: no such file, one that is too large, not a regular file, or not UTF-8: the line is named.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError(f"'{path}' is a pipe or a device; give a regular file.")
        if path.stat().st_size > limit:
            raise ConfigError(f"'{path}' has more than {limit // 1_000_000} MB; give a text file.")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read ({error.strerror}).") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"'{path}', line {line}: this is not UTF-8 text; save the file as UTF-8.") from error


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, a key that stands twice in an object, or values nested more than 100 deep.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {_DEEPEST} deep") from error
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


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key '{name}' stands twice")
        values[name] = value
    return values


def shard_names(index: Path) -> list[str]:
    """The names of the files that hold a model's tensors, sorted, from its ``*.safetensors.index.json``.

    Raises:
        CheckpointError: no index of weights, or one that names anything but ``.safetensors`` files beside it.
    """
    weight_map = read_json(index, limit=_INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; delete it and download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # A name from a file must not lead out of its folder.
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names the shard {name!r}; it must be a .safetensors file in the same folder."
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
