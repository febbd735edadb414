"""The zip archives of ``torch.save``: torch maps them and believes every number in them, so all are checked here.

The directory and the pickle are checked before torch sees the file, which reads a few kilobytes; the tensors when their
file is known to be used, as that reads all of them. Each record has a CRC-32.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from arl2.errors import CheckpointError
from arl2.files.regular import parsed_by_others, require_regular

# Names and shapes of the tensors of the largest published checkpoints take a megabyte.
_LARGEST_PICKLE = 64_000_000
_LARGEST_DIRECTORY = 64_000_000
_MOST_RECORDS = 1_000_000
_LOCAL = struct.Struct("<4s5H3I2H")
_AT_ONCE = 1 << 24  # bytes
_THREADS = 4


def require_sound_archive(path: Path) -> None:
    """Check the directory of an archive against the archive, and the CRC of its pickle.

    Raises:
        CheckpointError: records that are compressed, encrypted, overlapping or not where the directory says; too many
            of them; a pickle that is too large, damaged, or not there.
    """
    size = require_regular(path)
    with parsed_by_others(path, "a whole archive of torch.save"), path.open("rb") as file:
        _require_small_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            _require_stored(records, size, file)
            _require_sound_pickle(records, archive)


def records_intact(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Check tensors of an archive, mapped or read, by the CRC of their records: this reads them whole.

    Args:
        path: the archive, which ``require_sound_archive`` has accepted.
        tensors: what is used of it, by name.

    Returns:
        Whether the archive has checksums: torch can write it without.

    Raises:
        CheckpointError: bytes that are not those that were written; the tensor is named.
    """
    with parsed_by_others(path, "a whole archive of torch.save"), zipfile.ZipFile(path) as archive:
        written = {(record.file_size, record.CRC) for record in archive.infolist()}
    if not any(crc for size, crc in written if size):
        return False
    # Tensors that share their memory are checked once.
    storages = {
        tensor.untyped_storage().data_ptr(): (name, tensor)
        for name, tensor in tensors.items()
        if tensor.layout is torch.strided  # others are no weights, as ``require_weights`` says
    }
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        found = threads.map(_size_and_crc, (tensor for _, tensor in storages.values()))
        for (name, _), one in zip(storages.values(), found, strict=True):
            if one not in written:
                raise CheckpointError(
                    f"{path} is damaged: the checksum of '{name}' does not match its bytes; download or copy it again."
                )
    return True


def _size_and_crc(tensor: Tensor) -> tuple[int, int]:
    """Of all bytes of a tensor's storage."""
    storage = tensor.untyped_storage()
    raw = torch.tensor([], dtype=torch.uint8).set_(storage).numpy().data
    crc = 0
    for start in range(0, len(raw), _AT_ONCE):
        crc = zlib.crc32(raw[start : start + _AT_ONCE], crc)
    return len(raw), crc


def _require_small_directory(file: BinaryIO, size: int) -> None:
    """The end of an archive says how large its directory is; Python's reader would read all of it."""
    tail = min(size, 65_557)  # the end record with the longest comment
    file.seek(size - tail)
    end = file.read(tail)
    place = end.rfind(b"PK\5\6")
    if place >= 0 and len(end) >= place + 16:
        (length,) = struct.unpack("<I", end[place + 12 : place + 16])
        if _LARGEST_DIRECTORY < length < 0xFFFFFFFF:
            raise zipfile.BadZipFile(f"its directory claims {length:,} bytes")
    file.seek(0)


def _require_stored(records: list[zipfile.ZipInfo], size: int, file: BinaryIO) -> None:
    """Every record lies in the file as it is, where the directory says, and none over another."""
    if len(records) > _MOST_RECORDS:
        raise zipfile.BadZipFile(f"it has {len(records):,} records")
    names = {record.filename for record in records}
    if len(names) != len(records):
        raise zipfile.BadZipFile("a record stands in it twice")
    if min((record.header_offset for record in records), default=0):
        # Python's reader takes all places from there on, torch from the beginning of the file.
        raise zipfile.BadZipFile("something stands before its first record")
    end = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise zipfile.BadZipFile(
                f"'{record.filename}' is compressed or encrypted, as torch.save never does: unpack it and zip it "
                "without compression"
            )
        file.seek(record.header_offset)
        head = file.read(_LOCAL.size)
        if len(head) < _LOCAL.size:
            raise zipfile.BadZipFile(f"'{record.filename}' is outside of the file")
        magic, *_, name_bytes, extra_bytes = _LOCAL.unpack(head)
        start = record.header_offset + _LOCAL.size + name_bytes + extra_bytes
        if magic != b"PK\3\4" or file.read(name_bytes) != record.orig_filename.encode("utf-8"):
            raise zipfile.BadZipFile(f"'{record.filename}' is not where the directory says")
        if record.header_offset < end or record.compress_size != record.file_size or start + record.file_size > size:
            raise zipfile.BadZipFile(f"'{record.filename}' lies over other records, or outside of the file")
        end = start + record.file_size


def _require_sound_pickle(records: list[zipfile.ZipInfo], archive: zipfile.ZipFile) -> None:
    """``data.pkl``, and the other small records that say how to read the tensors."""
    checked = any(record.CRC for record in records if record.file_size)
    pickles = [record for record in records if record.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise zipfile.BadZipFile(f"it has {len(pickles)} records called data.pkl; torch.save writes one")
    for record in records:
        folder, _, name = record.filename.rpartition("/")
        if record is not pickles[0] and (folder.count("/") or name not in ("byteorder", "version")):
            continue
        if record.file_size > _LARGEST_PICKLE:
            raise zipfile.BadZipFile(f"its {name} has {record.file_size:,} bytes; at most {_LARGEST_PICKLE:,} are read")
        if checked:
            archive.read(record)  # which checks the CRC


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(file)
