"""Opening the files of a UMT5 text part: weights of both published layouts and the tokenizer. Touches no network.

Files are read with code disabled, and mapped: only what is used is read.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config

from arl2.errors import CheckpointError
from arl2.files.float8 import without_scales
from arl2.files.parts import require_tokenizer_files
from arl2.files.plain import read_json, safetensors_of
from arl2.files.regular import parsed_by_others
from arl2.files.tensors import read_safetensors, read_tensors, require_weights
from arl2.text.umt5_layout import UMT5Sizes, translate_encoder
from arl2.text.umt5_pieces import tokenizer_of_pieces
from arl2.text.umt5_weights import UMT5Weights

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_PIECES = "spiece_model"  # ComfyUI keeps the tokenizer's file as a tensor of bytes beside the weights


def open_encoder_folder(folder: Path) -> UMT5Weights:
    """The encoder of a ``text_encoder`` folder: ``config.json`` and ``*.safetensors``, in shards or not.

    Raises:
        CheckpointError: a file is missing or damaged, or together they are not exactly one UMT5 encoder.
    """
    tensors: dict[str, Tensor] = {}
    for file in safetensors_of(folder):
        tensors |= read_safetensors(file)
    return _weights(folder, tensors, read_json(folder / _CONFIG))


def open_encoder_file(path: Path) -> UMT5Weights:
    """The encoder of one file, the original or ComfyUI's, plain or in 8 bits; settings that no tensor tells are Wan's.

    Raises:
        CheckpointError: not there, damaged, of another kind, or not exactly one UMT5 encoder.
    """
    # An old pickle cannot be mapped: a whole encoder would be copied into memory.
    return _weights(path, read_tensors(path, what=f"{path.suffix} file", old=False, intact=False), {})


def holds_tokenizer(path: Path) -> bool:
    """Whether a text encoder's file has its tokenizer inside, as ComfyUI's have."""
    return path.suffix == ".safetensors" and path.is_file() and _PIECES in read_safetensors(path)


def open_own_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer inside a text encoder's file that ``holds_tokenizer``.

    Raises:
        CheckpointError: a damaged one.
    """
    pieces = read_safetensors(path)[_PIECES]
    if pieces.dtype is not torch.uint8:
        raise CheckpointError(f"{path} holds no readable tokenizer: {_PIECES} is {pieces.dtype}, not bytes.")
    return tokenizer_of_pieces(pieces.flatten().numpy().tobytes(), str(path))


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder with a ``tokenizer.json``, taken as that file describes it.

    Raises:
        CheckpointError: no such file, or a damaged one.
    """
    if not (folder / _TOKENIZER).is_file():
        raise CheckpointError(f"{folder} has no {_TOKENIZER}; give the tokenizer folder of the published model.")
    require_tokenizer_files(folder)
    with parsed_by_others(folder, "the folder of a readable tokenizer"):
        # This class takes tokenizer.json as it is; which class the folder names does not matter, nor does its code.
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _weights(path: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> UMT5Weights:
    weights, scales = without_scales({name: x for name, x in tensors.items() if name != _PIECES}, str(path))
    require_weights(weights, str(path))
    sizes, named, named_scales = translate_encoder(weights, str(path), scales)
    return UMT5Weights(_config(path, sizes, config), named, path, named_scales)


def _config(path: Path, sizes: UMT5Sizes, config: dict[str, Any]) -> UMT5Config:
    """What the tensors tell, and the three settings that they do not: Wan's unless a config says otherwise."""
    expected = {"model_type": "umt5", "feed_forward_proj": "gated-gelu", **asdict(sizes)}
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"{path / _CONFIG} says {name} = {config[name]!r:.80}, but the weights are of {value!r}."
            )
    distance = config.get("relative_attention_max_distance", 128)
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    # Half the buckets are for each direction, and half of those are for one position each.
    nearest = sizes.relative_attention_num_buckets // 4
    if type(distance) is not int or distance <= nearest:
        raise CheckpointError(
            f"{path / _CONFIG} says relative_attention_max_distance = {distance!r:.80}; it is a whole number "
            f"above {nearest}."
        )
    if type(epsilon) is not float or not math.isfinite(epsilon) or epsilon <= 0:
        raise CheckpointError(
            f"{path / _CONFIG} says layer_norm_epsilon = {epsilon!r:.80}; it is a small positive number."
        )
    return UMT5Config(
        **asdict(sizes),
        relative_attention_max_distance=distance,
        layer_norm_epsilon=epsilon,
        feed_forward_proj="gated-gelu",
    )
