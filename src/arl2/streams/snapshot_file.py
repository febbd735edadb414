"""The file of a snapshot: safetensors with a checksum over every byte, written atomically.

    8 bytes    length of the JSON
    JSON       name -> dtype, shape, place; and under ``__metadata__`` the strings ``format``, ``version``, ``facts``
               (JSON again) and ``checksum``
    tensors    one after the other, nothing between them

The checksum is the SHA-256 of the file with 64 zeros in the checksum's place. Any safetensors reader opens the file.
"""

import hashlib
import io
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arl2.errors import SnapshotError
from arl2.files.atomic import StagedFile
from arl2.files.plain import parse_json
from arl2.files.regular import require_regular
from arl2.version import __version__

FORMAT, VERSION = "arl2-stream", 1
MAX_JSON = 16 * 1024 * 1024  # bytes; a snapshot of 30 layers has some kilobytes
_UNKNOWN = "0" * 64
_MOST = 2**53  # of sizes and places: beyond every disk
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_snapshot(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write atomically and flush: a crash leaves the file that was there before.

    Args:
        path: replaced if it is there.
        metadata: plain values, as JSON holds them.
        tensors: on any device; those on a GPU are copied one by one.

    Raises:
        SnapshotError: the folder is missing or cannot be written to.
    """
    publish_snapshot(stage_snapshot(path, metadata, tensors))


def stage_snapshot(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StagedFile:
    """Write beside ``path``; ``publish_snapshot`` puts it there. Arguments and errors as for ``write_snapshot``."""
    with _telling(path):
        staged = StagedFile(path)
    try:
        with _telling(path), staged.part.open("wb") as file:
            _write(file, metadata, tensors)
    except BaseException:
        staged.discard()
        raise
    return staged


def snapshot_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """What ``write_snapshot`` would put into a file; arguments as there."""
    file = io.BytesIO()
    _write(file, metadata, tensors)
    return file.getvalue()


def _write(file: io.BufferedIOBase, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    # Large elements first keeps every tensor aligned, whatever the sizes.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    head = _head(metadata, dict(ordered))
    digest = hashlib.sha256(head)
    file.write(head)
    for _, tensor in ordered:
        raw = _bytes_of(tensor.detach().to("cpu").contiguous())
        digest.update(raw)
        file.write(raw)
    file.seek(head.index(_UNKNOWN.encode()))
    file.write(digest.hexdigest().encode())


def publish_snapshot(staged: StagedFile) -> None:
    """Put a staged snapshot in its place, flushed; raises ``SnapshotError`` if the system refuses."""
    with _telling(staged.path):
        staged.publish(flush=True)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SnapshotError(f"'{path}' cannot be written ({error.strerror or error}); choose another path.") from error


def read_snapshot(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors, on the CPU, of an intact file.

    Raises:
        SnapshotError: no such file, not a snapshot, of a newer version, truncated, or changed since it was written.
    """
    require_regular(path, error=SnapshotError)
    try:
        with path.open("rb") as file:
            return _read(file, path, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise SnapshotError(f"'{path}' cannot be read ({error.strerror or error}); give a snapshot.") from error


def read_snapshot_bytes(data: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As ``read_snapshot``, of bytes that ``snapshot_bytes`` made; ``path`` is what errors call them."""
    return _read(io.BytesIO(data), path, len(data))


def _read(file: io.BufferedIOBase, path: Path, size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    length = file.read(8)
    json_bytes = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
    if not 0 < json_bytes <= min(MAX_JSON, size - 8):
        raise SnapshotError(f"'{path}' is not a snapshot, or is truncated; give a file that Stream.save wrote.")
    raw = file.read(json_bytes)
    head = _json(raw, path)
    metadata = head.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise SnapshotError(f"'{path}' is not a snapshot of a stream; give a file that Stream.save wrote.")
    _require_version(metadata, path)
    places = _places(head, path)
    end = 8 + json_bytes + (places[-1][-1] if places else 0)
    if end != size:
        raise SnapshotError(f"'{path}' has {size:,} bytes instead of {end:,}; it was truncated or appended to.")
    checksum = str(metadata.get("checksum"))
    if re.fullmatch("[0-9a-f]{64}", checksum) is None:
        raise SnapshotError(f"'{path}' has no checksum; it is damaged.")
    digest = hashlib.sha256(length)
    digest.update(raw.replace(checksum.encode(), _UNKNOWN.encode(), 1))
    tensors = {}
    for name, dtype, shape, start, stop in places:
        # torch's own memory is aligned for any dtype.
        buffer = torch.empty(stop - start, dtype=torch.uint8)
        whole = _bytes_of(buffer)
        if file.readinto(whole) != len(whole):
            raise SnapshotError(f"'{path}' was truncated while it was read; copy it again.")
        digest.update(whole)
        tensors[name] = buffer.view(dtype).reshape(shape)
    if digest.hexdigest() != checksum:
        raise SnapshotError(f"'{path}' is damaged: its checksum does not match its bytes; use another snapshot.")
    return _json(str(metadata.get("facts")), path), tensors


def _require_version(metadata: dict[str, Any], path: Path) -> None:
    version = metadata.get("version")
    if version == str(VERSION):
        return
    writer = metadata.get("arl2")
    if isinstance(version, str) and version.isdecimal() and len(version) < 10 and int(version) > VERSION:
        raise SnapshotError(
            f"'{path}' was written by arl2 {writer} in version {version} of the format; this arl2 ({__version__}) "
            f"reads version {VERSION}: update it."
        )
    raise SnapshotError(f"'{path}' names the unknown format version {version!r}; use another snapshot.")


def _places(head: dict[str, Any], path: Path) -> list[tuple[str, torch.dtype, list[int], int, int]]:
    """Name, dtype, shape, first byte and end of every tensor, in the order of the file, without gaps."""
    places = []
    for name, entry in head.items():
        try:
            dtype = _DTYPES[entry["dtype"]]
            shape, (start, stop) = entry["shape"], entry["data_offsets"]
            whole = all(type(number) is int and 0 <= number <= _MOST for number in (*shape, start, stop))
            # Without its zeros, too: torch multiplies the sizes of an empty tensor as well.
            possible = type(shape) is list and len(shape) <= 8 and whole and math.prod(n or 1 for n in shape) <= _MOST
            fits = possible and stop - start == math.prod(shape) * dtype.itemsize
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotError(f"'{path}' has an unreadable entry for tensor '{name}'; it is damaged.") from error
        if not fits:
            raise SnapshotError(f"'{path}' has an impossible entry for tensor '{name}'; it is damaged.")
        places.append((name, dtype, shape, start, stop))
    places.sort(key=lambda place: (place[3], place[4]))
    ends = [0, *(place[4] for place in places)]
    if any(place[3] != end for place, end in zip(places, ends, strict=False)):
        raise SnapshotError(f"'{path}' has tensors that overlap or leave gaps; it is damaged.")
    return places


def _head(stream: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Length and JSON, with zeros for the checksum, filled up with spaces to a multiple of 8 bytes."""
    # The checksum comes first: its place is that of the first 64 zeros.
    metadata = {"checksum": _UNKNOWN, "format": FORMAT, "version": str(VERSION), "arl2": __version__}
    head: dict[str, Any] = {"__metadata__": {**metadata, "facts": json.dumps(stream, allow_nan=False)}}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * tensor.element_size()
        head[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    raw = json.dumps(head).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _json(raw: bytes | str, path: Path) -> dict[str, Any]:
    try:
        values = parse_json(raw if isinstance(raw, str) else raw.decode())
    except ValueError as error:
        raise SnapshotError(f"'{path}' has a damaged header; use another snapshot.") from error
    if not isinstance(values, dict):
        raise SnapshotError(f"'{path}' has a damaged header; use another snapshot.")
    return values


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's own memory."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
