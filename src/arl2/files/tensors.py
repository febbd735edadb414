"""Reading files of tensors, with code disabled. Files are mapped into memory: only what is used is read."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arl2.errors import CheckpointError
from arl2.files.containers import weights_in
from arl2.files.float8 import FLOAT8
from arl2.files.plain import first_line

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (*PICKLES, ".safetensors")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, *FLOAT8)


def unpickle(path: Path, *, what: str, old: bool = True) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers of them, on the CPU, and nothing that runs.

    Args:
        path: a file that is there.
        what: what errors say that it is not a whole one of, such as ".pt file".
        old: also read files of torch before 1.6, which are no zip archives and cannot be mapped.

    Raises:
        CheckpointError: empty, damaged, only to be read by running code from it, or old where that is not accepted.
    """
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty, so not a whole {what}; download it again.")
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped or old:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks about old pickles: what matters becomes an error below
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} would run code when read, which is never allowed; ask for .safetensors or plain tensors."
        ) from error
    except Exception as error:  # a damaged pickle leads torch's reader to almost any of them
        raise CheckpointError(f"{path} is not a whole {what} ({first_line(error)}); download it again.") from error
    raise CheckpointError(f"{path} is not a whole {what}, or one of torch before 1.6; download it again.")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, by name, on the CPU.

    Raises:
        CheckpointError: not there or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole .safetensors file ({first_line(error)}); download it again."
        ) from error


def read_tensors(path: Path, *, what: str = "file of weights", old: bool = True) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name, as stored; of a checkpoint, those of its model.

    Args:
        path: ends in one of ``WEIGHT_SUFFIXES``.
        what, old: as for ``unpickle``.

    Raises:
        CheckpointError: no such file, another kind of file, a damaged one, one that wants to run code, or one that
            holds anything but named tensors.
    """
    accepted = ", ".join(WEIGHT_SUFFIXES)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}; give one that ends in {accepted}.")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(f"{path} ends in {path.suffix or 'nothing'}; accepted are {accepted}.")
    content = read_safetensors(path) if path.suffix == ".safetensors" else unpickle(path, what=what, old=old)
    return weights_in(content, str(path)).tensors


def require_weights(tensors: Mapping[str, Tensor], where: str) -> None:
    """Only dense tensors of numbers we compute with may go further: what comes after relies on it.

    Raises:
        CheckpointError: the first tensor that is sparse, empty, or not of ``DTYPES``; ``where`` names the file.
    """
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES or not tensor.numel():
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise CheckpointError(
                f"{where}: {name} is {list(tensor.shape)} {tensor.dtype}, {tensor.layout}; weights are dense, not "
                f"empty, and of {kinds}."
            )
