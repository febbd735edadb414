"""Weights of published codecs: a file's tensors by name, read with code disabled; a module filled with just them."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from arl2.errors import CheckpointError, ConfigError

_SUFFIXES = (".pth", ".pt", ".safetensors")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, as stored. The file is mapped into memory: only what is used is read.

    Raises:
        CheckpointError: no such file, another kind of file, a damaged one, one that wants to run code, or one whose
            entries are not all dense tensors of floating numbers.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}; give one that ends in {', '.join(_SUFFIXES)}.")
    if path.suffix not in _SUFFIXES:
        raise CheckpointError(f"{path} ends in {path.suffix or 'nothing'}; accepted are {', '.join(_SUFFIXES)}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no named tensors; give a file of weights alone.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(tensor).__name__}; give a file of named tensors alone.")
        if tensor.layout is not torch.strided or not tensor.is_floating_point() or not tensor.numel():
            raise CheckpointError(
                f"{path}: {name} is {list(tensor.shape)} of {tensor.dtype}; weights are dense, floating and not empty."
            )
    return content


def fill_exactly(module: nn.Module, tensors: dict[str, Tensor], *, dtype: torch.dtype, where: str) -> None:
    """Give a module, built on the meta device, these tensors as its parameters, cast to ``dtype``.

    Raises:
        CheckpointError: a tensor is missing, besides, or of another shape; the first is named, with their number.
        ConfigError: ``dtype`` is not a floating one.
    """
    if not dtype.is_floating_point:
        raise ConfigError(f"The compute dtype is {dtype}; use torch.float32, torch.bfloat16 or torch.float16.")
    expected = module.state_dict()
    unfit = [f"{name} is missing" for name in expected if name not in tensors]
    unfit += [f"{name} is besides" for name in tensors if name not in expected]
    unfit += [
        f"{name} is {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if unfit:
        raise CheckpointError(
            f"{where} is not exactly one {type(module).__name__}: {len(unfit)} tensors do not fit, first: {unfit[0]}."
        )
    module.load_state_dict({name: x.to(dtype) for name, x in tensors.items()}, strict=True, assign=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole .safetensors file ({_first_line(error)}); copy it anew."
        ) from error


def _read_pickle(path: Path) -> Any:
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty; copy it anew.")
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
        raise CheckpointError(f"{path} is not a whole file of weights ({_first_line(error)}); copy it anew.") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0][:200]
