"""Opening a transformer's weights, a file or a folder: tensors by name, and which of the file's branches they are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from arl2.errors import CheckpointError
from arl2.files.containers import Contained, weights_in
from arl2.files.float8 import without_scales
from arl2.files.plain import PICKLES, WEIGHT_SUFFIXES, read_json, safetensors_of
from arl2.files.regular import require_regular
from arl2.files.tensors import read_safetensors, require_intact, require_weights, unpickle

TRANSFORMER = "transformer"
# Folders of a model of two transformers, as diffusers and as Wan 2.2's own release name them.
_PAIRS = ((TRANSFORMER, "transformer_2"), ("high_noise_model", "low_noise_model"))
# How names begin of files of the other parts that may lie beside a transformer's.
_BESIDE = ("Wan2.1_VAE", "models_t5", "taew")
# What files of the other parts have, in each of their layouts, and no transformer has.
_OTHER_PARTS = {
    "a VAE; give it with --vae": ("encoder.conv1.weight", "encoder.conv_in.weight"),
    "a UMT5 text encoder; give it with --text-encoder": ("token_embedding.weight", "shared.weight"),
}


@dataclass(frozen=True)
class WeightsFile:
    """What was found at a path.

    Attributes:
        path: the file, or the folder's weights.
        tensors: by name, as stored.
        scales: factors of weights in 8 bits, by the weight's name.
        branch: which of the weights in the file these are: ``generator_ema``, ``generator``, or None if it has one set.
        config: the ``config.json`` beside the weights, empty if there is none.
        unused: other entries of the file (the branch not taken, a critic, an optimizer) and how many tensors each has.
    """

    path: Path
    tensors: dict[str, Tensor]
    scales: dict[str, Tensor] = field(default_factory=dict)
    branch: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)


def read_weights(path: str | Path, *, branch: str = "auto") -> WeightsFile:
    """Read a file of weights, or a folder of them.

    Args:
        path: a file (``.safetensors``, or a checkpoint ``.pt``, ``.pth``, ``.bin``, ``.ckpt``); a folder with
            ``*.safetensors`` (sharded or not), with ``model.pt`` or with one such file, and perhaps a ``config.json``;
            or the folder of a whole diffusers pipeline, whose ``transformer`` is taken.
        branch: of a file with two sets of weights: ``"auto"`` prefers the EMA, ``"ema"`` and ``"plain"`` insist.

    Raises:
        CheckpointError: nothing there, another kind of file, a broken one, one that wants to run code, several models,
            or a pipeline of two transformers.
    """
    path = Path(path)
    if path.is_dir():
        folder = _weights_folder(path)
        files = _files_of(folder)
        place = folder if len(files) > 1 or files[0].suffix == ".safetensors" else files[0]
    else:
        folder, files, place = path.parent, [_checked(path)], path
    found = Contained({})
    for file in files:
        content = read_safetensors(file) if file.suffix == ".safetensors" else unpickle(file, what=".pt file")
        one = weights_in(content, str(file), branch)
        if file.suffix in PICKLES:
            require_intact(file, one.tensors)
        found = Contained({**found.tensors, **one.tensors}, one.branch, one.unused)
    for what, signs in _OTHER_PARTS.items():
        if any(sign in found.tensors for sign in signs):
            raise CheckpointError(f"{place} is no transformer but {what}.")
    tensors, scales = without_scales(found.tensors, str(place))
    require_weights(tensors, str(place))
    return WeightsFile(place, tensors, scales, found.branch, _read_config(folder), found.unused)


def config_beside(path: Path) -> dict[str, Any]:
    """The ``config.json`` beside weights, without opening them; empty if there is none."""
    return _read_config(_weights_folder(path) if path.is_dir() else path.parent)


def holds_weights(folder: Path) -> bool:
    """Whether files of weights lie in a folder itself, rather than in folders of it."""
    return any(file.suffix in WEIGHT_SUFFIXES and file.is_file() for file in folder.iterdir())


def _checked(path: Path) -> Path:
    accepted = ", ".join(WEIGHT_SUFFIXES)
    if not path.exists():
        raise CheckpointError(f"There is no file or folder {path}; give a file ({accepted}) or a folder.")
    require_regular(path)
    if path.suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(f"{path} ends in {path.suffix or 'nothing'}; accepted are {accepted} and folders.")
    return path


def _files_of(folder: Path) -> list[Path]:
    """The files of a folder's weights: ``.safetensors``; else its ``model.pt``, or whatever one checkpoint it has."""
    files = sorted(file for file in folder.glob("*") if file.is_file() and not file.name.startswith(_BESIDE))
    checkpoints = [file for file in files if file.suffix in PICKLES]
    whole = [file for file in files if file.suffix == ".safetensors"]
    if len(whole) == 1 and not any(folder.glob("*.index.json")):
        return whole
    if whole or not checkpoints:
        return safetensors_of(folder)
    named = [file for file in checkpoints if file.stem == "model"]
    found = named if len(named) == 1 else checkpoints
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4]) + (", ..." if len(found) > 4 else "")
        raise CheckpointError(f"{folder} has {len(found)} checkpoints ({names}); name the one to load.")
    return found


def _weights_folder(folder: Path) -> Path:
    """Of a folder of weights itself, of a whole pipeline its transformer's."""
    for high, low in _PAIRS:
        if (folder / high).is_dir() and (folder / low).is_dir():
            raise CheckpointError(
                f"{folder} is a pipeline of two transformers ({high} for high noise, {low} for low, as Wan 2.2 A14B); "
                "models of one transformer alone are sampled here: give one of Wan 2.1."
            )
    return folder / TRANSFORMER if (folder / TRANSFORMER).is_dir() else folder


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}
