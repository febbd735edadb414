"""Archives of torch.save, made or damaged by others: every byte that is used was written so, or they are refused."""

import random
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.serialization import config as serialization

from arl2.checkpoints.reading import read_weights
from arl2.errors import CheckpointError
from arl2.files.archives import require_sound_archive
from arl2.files.tensors import read_tensors, require_weights, unpickle
from support import randn

TENSORS = {"a": randn(30, 40), "b": randn(20, seed=1, dtype=torch.bfloat16)}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.save(TENSORS, tmp_path / "whole.pt")
    return tmp_path / "whole.pt"


def zipped_again(path: Path, *, compression: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    """The records of an archive in a new one, with other content where ``more`` has it."""
    other = path.with_name("again.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, more.get(name.rpartition("/")[2].partition(".")[0], old.read(name)))
    return other


def test_every_flipped_byte_of_a_tensor_is_found(archive: Path) -> None:
    content = archive.read_bytes()
    start = content.index(TENSORS["a"].numpy().tobytes()[:64])
    draw = random.Random(0)
    for place in (start, start + 4799, *(start + draw.randrange(4800) for _ in range(40))):
        damaged = archive.with_name("damaged.pt")
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="damaged: the checksum of 'a' does not match its bytes"):
            read_tensors(damaged)
    assert all(torch.equal(x, TENSORS[name]) for name, x in read_tensors(archive).items())


def test_compressed_records_are_refused(archive: Path) -> None:
    """Torch would map the compressed bytes, and take them for numbers."""
    with pytest.raises(CheckpointError, match=r"is compressed or encrypted, as torch.save never does"):
        unpickle(zipped_again(archive, compression=zipfile.ZIP_DEFLATED), what=".pt file")
    assert torch.equal(read_tensors(zipped_again(archive))["a"], TENSORS["a"])


def test_a_pickle_that_would_fill_memory_is_refused_unread(archive: Path) -> None:
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        large = zipped_again(archive, compression=compression, data=bytes(70_000_000))
        began = time.process_time()
        with pytest.raises(CheckpointError, match=r"compressed|at most 64,000,000 are read"):
            require_sound_archive(large)
        assert time.process_time() - began < 1


def test_records_that_lie_over_others_are_refused(archive: Path) -> None:
    """A directory may name the same bytes many times over."""
    with zipfile.ZipFile(archive) as whole:
        offsets = {record.filename: record.header_offset for record in whole.infolist()}
    a, b = (next(offsets[name] for name in offsets if name.endswith(end)) for end in ("data/0", "data/1"))
    content = archive.read_bytes()
    directory = content.index(b"PK\1\2")
    entry = content.index(b.to_bytes(4, "little"), directory)
    archive.write_bytes(content[:entry] + a.to_bytes(4, "little") + content[entry + 4 :])
    with pytest.raises(CheckpointError, match="is not where the directory says"):
        unpickle(archive, what=".pt file")


def test_archives_without_checksums_are_read(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    serialization.save.compute_crc32 = False
    try:
        torch.save(TENSORS, archive)
    finally:
        serialization.save.compute_crc32 = True
    assert torch.equal(read_tensors(archive)["a"], TENSORS["a"])
    assert "was written without checksums" in caplog.text


def test_containers_that_share_containers_are_counted_at_once(tmp_path: Path) -> None:
    """28 levels of a dict that holds the level below twice: 2**28 visits, or 28."""
    level: Any = {"x": torch.ones(2)}
    for _ in range(28):
        level = {"a": level, "b": level}
    torch.save({"generator": TENSORS, "opt": level}, tmp_path / "shared.pt")
    began = time.process_time()
    assert read_weights(tmp_path / "shared.pt").unused == {"opt": 1}
    assert time.process_time() - began < 5


def test_tensors_larger_than_what_is_stored_of_them_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "wide.pt")
    with pytest.raises(CheckpointError, match=r"a \[1000000, 1000000\] repeats 4 bytes .* save it with \.contiguous"):
        require_weights(read_tensors(tmp_path / "wide.pt"), "the file")


def test_bytes_before_an_archive_are_refused(archive: Path) -> None:
    shutil.copy(archive, archive.with_name("twice.pt"))
    with archive.with_name("twice.pt").open("ab") as file:
        file.write(archive.read_bytes())
    with pytest.raises(CheckpointError, match="something stands before its first record"):
        unpickle(archive.with_name("twice.pt"), what=".pt file")
