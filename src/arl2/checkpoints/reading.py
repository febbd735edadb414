"""Opening a transformer's weights, a file or a folder: tensors by name, and which of the file's branches they are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from arl2.errors import CheckpointError
from arl2.files.plain import read_json, safetensors_of
from arl2.files.tensors import PICKLES, read_safetensors, require_weights, unpickle

Branch = Literal["auto", "ema", "plain"]
EMA, PLAIN = "generator_ema", "generator"


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
    require_weights(file.tensors, str(file.path))
    return file


def config_beside(path: Path) -> dict[str, Any]:
    """The ``config.json`` beside weights, without opening them; empty if there is none."""
    return _read_config(_weights_folder(path) if path.is_dir() else path.parent)


def _read(path: Path, branch: str) -> WeightsFile:
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file or folder {path}; give a .pt, a .safetensors or a folder.")
    if path.suffix == ".safetensors":
        return WeightsFile(path, read_safetensors(path), config=_read_config(path.parent))
    if path.suffix in PICKLES:
        return _read_pt(path, branch)
    accepted = ", ".join((*PICKLES, ".safetensors"))
    raise CheckpointError(f"{path} ends in {path.suffix or 'nothing'}; accepted are {accepted} and folders.")


def _read_folder(folder: Path) -> WeightsFile:
    folder = _weights_folder(folder)
    tensors: dict[str, Tensor] = {}
    for file in safetensors_of(folder):
        tensors |= read_safetensors(file)
    return WeightsFile(folder, tensors, config=_read_config(folder))


def _weights_folder(folder: Path) -> Path:
    """Of a folder of weights itself, of a whole pipeline its transformer's."""
    is_pipeline = not any(folder.glob("*.safetensors")) and (folder / "transformer").is_dir()
    return folder / "transformer" if is_pipeline else folder


def _read_pt(path: Path, branch: str) -> WeightsFile:
    content = unpickle(path, what=".pt file")
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


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def _tensor_count(value: Any) -> int:
    if isinstance(value, Tensor):
        return 1
    return sum(_tensor_count(v) for v in value.values()) if isinstance(value, dict) else 0


def _few(names: Any) -> str:
    shown = [str(name) for name in list(names)[:4]]
    return ", ".join(shown) + (", ..." if len(names) > 4 else "")
