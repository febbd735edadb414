"""Opening a weights file or folder: tensors by name, without running code from it and without copying it.

``.pt`` files are read with ``weights_only=True``, always. Files are mapped into memory: only what is used is read.
"""

import json
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arl2.errors import CheckpointError

Branch = Literal["auto", "ema", "plain"]
EMA, PLAIN = "generator_ema", "generator"
SUFFIXES = (".pt", ".pth", ".safetensors")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class WeightsFile:
    """What was found at a path.

    Attributes:
        path: the file, or the folder's weights.
        tensors: by name, as stored.
        branch: which of the weights in the file these are: ``generator_ema``, ``generator``, or None if it has one set.
        config: the ``config.json`` beside the weights, empty if there is none.
        unused: other entries of the file (the branch not taken, a critic, an optimizer) and how many tensors each has.
    """

    path: Path
    tensors: dict[str, Tensor]
    branch: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)


def read_weights(path: str | Path, *, branch: str = "auto") -> WeightsFile:
    """Read a ``.pt``, a ``.safetensors`` or a folder of either.

    Args:
        path: a file; a folder with ``*.safetensors`` (sharded or not) and perhaps a ``config.json``; or the folder
            of a whole diffusers pipeline, whose ``transformer`` is taken.
        branch: of a file with two sets of weights: ``"auto"`` prefers the EMA, ``"ema"`` and ``"plain"`` insist.

    Raises:
        CheckpointError: nothing there, another kind of file, a broken one, or one that wants to run code.
    """
    path = Path(path)
    if branch not in get_args(Branch):
        raise CheckpointError(f"Weights {branch!r} are not known; choose one of {', '.join(get_args(Branch))}.")
    file = _read(path, branch)
    _check_tensors(file)
    return file


def _read(path: Path, branch: str) -> WeightsFile:
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file or folder {path}; give a .pt, a .safetensors or a folder.")
    if path.suffix == ".safetensors":
        return WeightsFile(path, _read_safetensors(path), config=_read_config(path.parent))
    if path.suffix in (".pt", ".pth"):
        return _read_pt(path, branch)
    raise CheckpointError(f"{path} ends in {path.suffix or 'nothing'}; accepted are {', '.join(SUFFIXES)} and folders.")


def _read_folder(folder: Path) -> WeightsFile:
    if not any(folder.glob("*.safetensors")) and (folder / "transformer").is_dir():
        folder = folder / "transformer"
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        files = [folder / name for name in _shards(indexes[0])]
    else:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) > 1:
            raise CheckpointError(
                f"{folder} has {len(files)} .safetensors files and no index; name the one to load, or add its index."
            )
    if not files:
        raise CheckpointError(
            f"{folder} has no .safetensors file; give the folder that holds the transformer's weights."
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder} lacks {file.name}, which its index names; download it again.")
        tensors |= _read_safetensors(file)
    return WeightsFile(folder, tensors, config=_read_config(folder))


def _shards(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download the folder again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # A name from a file must not lead out of its folder.
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names the shard {name!r}; it must be a .safetensors file in the same folder."
            )
    return names


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole .safetensors file ({error}); download it again.") from error


def _read_pt(path: Path, branch: str) -> WeightsFile:
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a checkpoint is a dict of tensors.")
    config = _read_config(path.parent)
    branches = [name for name in (EMA, PLAIN) if isinstance(content.get(name), dict)]
    if not branches:
        if not content or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in content.items()):
            raise CheckpointError(
                f"{path} has entries {_few(content)} but neither {PLAIN} nor {EMA}, and is no dict of named tensors."
            )
        return WeightsFile(path, content, config=config)
    wanted = {"auto": branches[0], "ema": EMA, "plain": PLAIN}[branch]
    if wanted not in branches:
        raise CheckpointError(f"{path} has no {wanted} weights, only {', '.join(branches)}; choose another branch.")
    tensors = content[wanted]
    strangers = [key for key, value in tensors.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers:
        raise CheckpointError(f"{path}: {wanted} has entries that are not named tensors, first {strangers[0]!r}.")
    unused = {name: _tensor_count(value) for name, value in content.items() if name != wanted}
    return WeightsFile(path, tensors, wanted, config, unused)


def _check_tensors(file: WeightsFile) -> None:
    """Only dense tensors of numbers we compute with may go further: what comes after relies on it."""
    for name, tensor in file.tensors.items():
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES or not tensor.numel():
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise CheckpointError(
                f"{file.path}: {name} is {list(tensor.shape)} {tensor.dtype}, {tensor.layout}; weights are dense, "
                f"not empty, and of {kinds}."
            )


def _unpickle(path: Path) -> Any:
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty, so not a whole .pt file; download it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks about old pickles: what matters becomes an error below
            # Files of torch before 1.6 are no zip archives and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} would run code when read, which is never allowed; ask for .safetensors or plain tensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole .pt file ({_first_line(error)}); download it again.") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({_first_line(error)}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a JSON object is needed.")
    return content


def _tensor_count(value: Any) -> int:
    if isinstance(value, Tensor):
        return 1
    return sum(_tensor_count(v) for v in value.values()) if isinstance(value, dict) else 0


def _few(names: Any) -> str:
    shown = [str(name) for name in list(names)[:4]]
    return ", ".join(shown) + (", ..." if len(names) > 4 else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0][:200]
