"""Opening the files of a UMT5 text part: weights of both published layouts and the tokenizer. Touches no network.

``.pth`` files are read with ``weights_only=True``. Files are mapped: only what is used is read.
"""

import json
import math
import pickle
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config

from arl2.errors import CheckpointError
from arl2.text.umt5_layout import UMT5Sizes, translate_encoder
from arl2.text.umt5_weights import UMT5Weights

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"


def open_encoder_folder(folder: Path) -> UMT5Weights:
    """The encoder of a ``text_encoder`` folder: ``config.json`` and ``*.safetensors``, in shards or not.

    Raises:
        CheckpointError: a file is missing or damaged, or together they are not exactly one UMT5 encoder.
    """
    tensors: dict[str, Tensor] = {}
    for file in _safetensors_of(folder):
        tensors |= _read_safetensors(file)
    return _weights(folder, tensors, read_json(folder / _CONFIG))


def open_encoder_file(path: Path) -> UMT5Weights:
    """The encoder of one ``.pth``, ``.pt`` or ``.safetensors`` file; settings that no tensor tells are Wan's.

    Raises:
        CheckpointError: not there, damaged, of another kind, or not exactly one UMT5 encoder.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}; give the weights of the text encoder.")
    if path.suffix == ".safetensors":
        return _weights(path, _read_safetensors(path), {})
    if path.suffix in (".pth", ".pt"):
        return _weights(path, _read_pth(path), {})
    raise CheckpointError(f"{path} ends in {path.suffix or 'nothing'}; accepted are .pth, .pt and .safetensors.")


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder with a ``tokenizer.json``, taken as that file describes it.

    Raises:
        CheckpointError: no such file, or a damaged one.
    """
    if not (folder / _TOKENIZER).is_file():
        raise CheckpointError(f"{folder} has no {_TOKENIZER}; give the tokenizer folder of the published model.")
    try:
        # This class takes tokenizer.json as it is; which class the folder names does not matter, nor does its code.
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower about a file it cannot read
        raise CheckpointError(f"{folder} holds no readable tokenizer ({_first_line(error)}); copy it anew.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: no file, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({_first_line(error)}); copy the folder anew.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a JSON object is needed.")
    return content


def _weights(path: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> UMT5Weights:
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES or not tensor.numel():
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise CheckpointError(
                f"{path}: {name} is {list(tensor.shape)} {tensor.dtype}, {tensor.layout}; weights are dense, not "
                f"empty, and of {kinds}."
            )
    sizes, named = translate_encoder(tensors, str(path))
    return UMT5Weights(_config(path, sizes, config), named, path)


def _config(path: Path, sizes: UMT5Sizes, config: dict[str, Any]) -> UMT5Config:
    """What the tensors tell, and the three settings that they do not: Wan's unless a config says otherwise."""
    expected = {"model_type": "umt5", "feed_forward_proj": "gated-gelu", **asdict(sizes)}
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"{path / _CONFIG} says {name} = {config[name]!r}, but the weights are of {value!r}.")
    distance = config.get("relative_attention_max_distance", 128)
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    # Half the buckets are for each direction, and half of those are for one position each.
    nearest = sizes.relative_attention_num_buckets // 4
    if type(distance) is not int or distance <= nearest:
        raise CheckpointError(
            f"{path / _CONFIG} says relative_attention_max_distance = {distance!r}; it is a whole number "
            f"above {nearest}."
        )
    if type(epsilon) is not float or not math.isfinite(epsilon) or epsilon <= 0:
        raise CheckpointError(f"{path / _CONFIG} says layer_norm_epsilon = {epsilon!r}; it is a small positive number.")
    return UMT5Config(
        **asdict(sizes),
        relative_attention_max_distance=distance,
        layer_norm_epsilon=epsilon,
        feed_forward_proj="gated-gelu",
    )


def _safetensors_of(folder: Path) -> list[Path]:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if not indexes:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise CheckpointError(
                f"{folder} has {len(files)} .safetensors files and no index; one file, or shards with their index, "
                "are needed."
            )
        return files
    weight_map = read_json(indexes[0]).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{indexes[0]} has no weight_map; download the folder again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # A name from a file must not lead out of its folder.
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{indexes[0]} names the shard {name!r}; it must be a .safetensors file in the same folder."
            )
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}, which its index names; download it again.")
    return [folder / name for name in names]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole .safetensors file ({_first_line(error)}); download it again."
        ) from error


def _read_pth(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a whole .pth file, or one of torch before 1.6; download it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks about old pickles: what matters becomes an error below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} would run code when read, which is never allowed; ask for .safetensors or plain tensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole .pth file ({_first_line(error)}); download it again.") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path} is no dict of named tensors; give the weights of the text encoder alone.")
    return dict(content)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0][:200]
