"""Weights of published codecs: a file's tensors by name, read with code disabled; a module filled with just them."""

from pathlib import Path

import torch
from torch import Tensor, nn

from arl2.errors import CheckpointError
from arl2.files.exact import Misfits, fill, shapes_of
from arl2.files.tensors import read_safetensors, unpickle

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
    content = read_safetensors(path) if path.suffix == ".safetensors" else unpickle(path, what="file of weights")
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
        CheckpointError: a tensor is missing, unexpected, or of another shape; the first is named, with their number.
        ConfigError: ``dtype`` is not a floating one.
    """
    unfit = Misfits.between(shapes_of(module), tensors).one_by_one()
    if unfit:
        raise CheckpointError(
            f"{where} is not exactly one {type(module).__name__}: {len(unfit)} tensors do not fit, first: {unfit[0]}."
        )
    fill(module, tensors, dtype=dtype)
