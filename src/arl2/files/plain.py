"""What lies beside tensors: JSON objects, and the index that says which files a folder's weights are in."""

import json
from pathlib import Path
from typing import Any

from arl2.errors import CheckpointError

_INDEX_LIMIT = 16_000_000  # bytes; the published ones have a few kilobytes


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a sentence of ours."""
    return str(error).strip().split("\n", maxsplit=1)[0][:200]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: no such file, or one that does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there; give the whole folder.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON ({first_line(error)}); correct it, or delete it and fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a JSON object is needed.")
    return content


def shard_names(index: Path) -> list[str]:
    """The names of the files that hold a model's tensors, sorted, from its ``*.safetensors.index.json``.

    Raises:
        CheckpointError: no index of weights, or one that names anything but ``.safetensors`` files beside it.
    """
    if index.is_file() and index.stat().st_size > _INDEX_LIMIT:
        raise CheckpointError(f"{index} is too large for an index of weights; delete it and download it again.")
    weight_map = read_json(index).get("weight_map")
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
            f"{folder} has {len(files)} .safetensors files and no index; name the one to load, or add its index."
        )
    return files
