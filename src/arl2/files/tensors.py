"""Reading files of tensors, with code disabled. Files are mapped into memory: only what is used is read."""

import logging
import math
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from arl2.errors import CheckpointError
from arl2.files.archives import records_intact, require_sound_archive
from arl2.files.containers import weights_in
from arl2.files.float8 import FLOAT8
from arl2.files.plain import PICKLES, WEIGHT_SUFFIXES, parse_json
from arl2.files.regular import parsed_by_others, require_regular

logger = logging.getLogger(__name__)

_SAFETENSORS = "a whole .safetensors file"
_LARGEST_HEADER = 32_000_000  # bytes: a million tensors
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, *FLOAT8)


def unpickle(path: Path, *, what: str, old: bool = True) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers of them, on the CPU, and nothing that runs.

    Tensors are mapped, and not read: give those that are used to ``require_intact``.

    Args:
        path: a file.
        what: what errors say that it is not a whole one of, such as ".pt file".
        old: also read files of torch before 1.6, which are no zip archives and cannot be mapped.

    Raises:
        CheckpointError: not a regular file, empty, damaged, only to be read by running code from it, or old where that
            is not accepted.
    """
    if not require_regular(path):
        raise CheckpointError(f"{path} is empty, so not a whole {what}; download it again.")
    with parsed_by_others(path, f"a whole {what}"):
        mapped = zipfile.is_zipfile(path)
    if not mapped and not old:
        raise CheckpointError(f"{path} is not a whole {what}, or one of torch before 1.6; download it again.")
    if mapped:
        require_sound_archive(path)
    with parsed_by_others(path, f"a whole {what}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks about old pickles: what matters becomes an error
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} would run code when read, which is never allowed; ask for .safetensors or plain tensors."
            ) from error


def require_intact(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check tensors of ``unpickle`` by the checksums of their file, where it has them; this reads them whole.

    Raises:
        CheckpointError: a tensor with other bytes than were written.
    """
    if zipfile.is_zipfile(path) and not records_intact(path, tensors):
        logger.warning("%s was written without checksums, so damage to its tensors would not be seen.", path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, by name, on the CPU.

    Raises:
        CheckpointError: not there, not a regular file, or damaged.
    """
    return read_safetensors_with_metadata(path)[0]


def read_safetensors_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file as ``read_safetensors`` gives them, and its metadata."""
    _header_bytes(path)
    with parsed_by_others(path, _SAFETENSORS), safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
        return tensors, opened.metadata() or {}


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes in a ``.safetensors`` file, by name, from its header alone.

    Raises:
        CheckpointError: as ``read_safetensors``, or shapes that are larger than the file.
    """
    size, header = require_regular(path), _header_bytes(path)
    with parsed_by_others(path, _SAFETENSORS):
        with path.open("rb") as file:
            file.seek(8)
            entries = parse_json(file.read(header).decode())
        shapes = {name: entry["shape"] for name, entry in entries.items() if name != "__metadata__"}
        whole = all(type(n) is int and 0 <= n <= size for shape in shapes.values() for n in (*shape, len(shape)))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        # The format knows nothing after the last tensor; some readers would take it all into memory first.
        whole = whole and 8 + header + max(ends, default=0) == size
    # Every number takes a byte at least, so a header that promises more than the file holds is not honest.
    if not whole or sum(math.prod(shape) for shape in shapes.values()) > size:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and not exactly the tensors that its header names; download it again."
        )
    return shapes


def _header_bytes(path: Path) -> int:
    """Length of the header of a ``.safetensors`` file, small enough to be read."""
    size = require_regular(path)
    with parsed_by_others(path, _SAFETENSORS), path.open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    if not 2 <= header <= size - 8:
        raise CheckpointError(
            f"{path} is not {_SAFETENSORS}: it has {size:,} bytes, and its header is to have {header:,}; download it "
            "again."
        )
    if header > _LARGEST_HEADER:
        raise CheckpointError(f"{path} has a header of {header:,} bytes; at most {_LARGEST_HEADER:,} are read.")
    return int(header)


def read_tensors(
    path: Path, *, what: str = "file of weights", old: bool = True, intact: bool = True
) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name, as stored; of a checkpoint, those of its model.

    Args:
        path: ends in one of ``WEIGHT_SUFFIXES``.
        what, old: as for ``unpickle``.
        intact: read them whole to check them; else ``require_intact`` is called later.

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
    tensors = weights_in(content, str(path)).tensors
    if intact and path.suffix in PICKLES:
        require_intact(path, tensors)
    return tensors


def require_weights(tensors: Mapping[str, Tensor], where: str) -> None:
    """Only dense tensors of numbers we compute with may go further: what comes after relies on it.

    Raises:
        CheckpointError: the first tensor that is sparse, empty, not of ``DTYPES``, or whose strides make it larger than
            what is stored of it; ``where`` names the file.
    """
    for name, tensor in tensors.items():
        if tensor.layout is torch.strided and tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{where}: {name} {list(tensor.shape)} repeats {tensor.untyped_storage().nbytes():,} bytes that are "
                "stored of it; save it with .contiguous()."
            )
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES or not tensor.numel():
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise CheckpointError(
                f"{where}: {name} is {list(tensor.shape)} {tensor.dtype}, {tensor.layout}; weights are dense, not "
                f"empty, and of {kinds}."
            )
