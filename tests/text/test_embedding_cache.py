"""Embeddings on disk: hits without an encoder, nothing stale, nothing damaged, nothing half written."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arl2.errors import ConfigError
from arl2.text.embedding_cache import EmbeddingCache, embedding_key
from arl2.text.umt5 import UMT5Text
from support import randn
from text.tiny_umt5 import WIDTH, tiny_text, write_diffusers, write_original

PROMPTS = ["a cat runs", "dog jumps"]
KEY = embedding_key([3, 4, 1], encoder="one", dtype=torch.float32)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusers(tmp_path_factory.mktemp("diffusers"))


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "deep" / "cache")


def files(cache: EmbeddingCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_known_needs_no_encoder(published: Path, cache: EmbeddingCache, dtype: torch.dtype) -> None:
    uncached = UMT5Text.from_pretrained(published, torch_dtype=dtype).encode(PROMPTS)
    writing = UMT5Text.from_pretrained(published, torch_dtype=dtype, cache=cache)
    assert torch.equal(writing.encode(PROMPTS), uncached)
    reading = UMT5Text.from_pretrained(published, torch_dtype=dtype, cache=cache)
    assert torch.equal(reading.encode(PROMPTS[::-1]), uncached.flip(0))
    assert not reading.loaded
    assert torch.equal(reading.encode([PROMPTS[0], "a dog"])[0], uncached[0])
    assert reading.loaded
    assert len(files(cache)) == 3


def test_files_hold_the_rows_of_the_prompt_alone(cache: EmbeddingCache) -> None:
    encoded = tiny_text(cache=cache).encode(["a  cat runs", "a cat runs"])
    [file] = files(cache)
    assert torch.equal(load_file(file)["embeddings"], encoded[0, :4])
    assert b"cat" not in file.read_bytes()


def test_both_layouts_share_their_entries(published: Path, tmp_path: Path, cache: EmbeddingCache) -> None:
    UMT5Text.from_pretrained(published, cache=cache).encode(PROMPTS)
    wan = UMT5Text.from_wan_original(*write_original(tmp_path), cache=cache)
    wan.encode(PROMPTS)
    assert not wan.loaded


def test_another_encoder_dtype_or_cut_finds_nothing(published: Path, tmp_path: Path, cache: EmbeddingCache) -> None:
    prompt = ["a cat runs a dog jumps"]
    UMT5Text.from_pretrained(published, cache=cache).encode(prompt)
    changed = Path(shutil.copytree(published, tmp_path / "changed"))
    weights = changed / "text_encoder" / "model.safetensors"
    tensors = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights)
    for others in (
        UMT5Text.from_pretrained(changed, cache=cache),
        UMT5Text.from_pretrained(published, cache=cache, torch_dtype=torch.float32),
        UMT5Text.from_pretrained(published, cache=cache, length=4),
    ):
        others.encode(prompt)
        assert others.loaded
    assert len(files(cache)) == 4
    longer = UMT5Text.from_pretrained(published, cache=cache, length=9)
    assert longer.encode(prompt).shape == (1, 9, WIDTH)
    assert not longer.loaded


def test_keys_depend_on_everything_given() -> None:
    others = [
        embedding_key([3, 4], encoder="one", dtype=torch.float32),
        embedding_key([3, 4, 1], encoder="two", dtype=torch.float32),
        embedding_key([3, 4, 1], encoder="one", dtype=torch.bfloat16),
    ]
    assert len({KEY, *others}) == 4
    assert embedding_key((3, 4, 1), encoder="one", dtype=torch.float32) == KEY


def test_a_damaged_file_is_computed_again(cache: EmbeddingCache, caplog: pytest.LogCaptureFixture) -> None:
    expected = tiny_text(cache=cache).encode(["a cat"])
    [file] = files(cache)
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[-3] ^= 1
    for damaged in (good[:-5], good[:4], b"", bytes(flipped), b"x" * len(good), good + b"x" * 5000):
        file.write_bytes(damaged)
        caplog.clear()
        again = tiny_text(cache=cache)
        assert torch.equal(again.encode(["a cat"]), expected)
        assert "are damaged" in caplog.text
        assert str(file) in caplog.text
        assert file.read_bytes() == good


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"embeddings": torch.zeros(2, 4)}, "[2, 4] torch.float32 instead of [3, 4] torch.float32"),
        ({"embeddings": torch.zeros(3, 4, dtype=torch.float16)}, "torch.float16 instead of"),
        ({"other": torch.zeros(3, 4)}, "holds the tensors ['other']"),
        ({"embeddings": torch.zeros(3, 4), "more": torch.zeros(1)}, "holds the tensors"),
        ({"embeddings": torch.zeros(3, 4)}, "not those that were written"),
    ],
)
def test_files_of_another_kind_are_not_taken(
    cache: EmbeddingCache,
    caplog: pytest.LogCaptureFixture,
    tensors: dict[str, torch.Tensor],
    reason: str,
) -> None:
    cache.folder.mkdir(parents=True)
    save_file(tensors, cache.folder / f"{KEY}.safetensors")
    assert cache.read(KEY, shape=(3, 4), dtype=torch.float32) is None
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert reason in record.message


def test_what_is_written_is_read_and_replaced_whole(cache: EmbeddingCache) -> None:
    assert cache.read(KEY, shape=(3, 4), dtype=torch.float32) is None
    first, second = randn(3, 4, seed=1), randn(3, 4, seed=2)
    cache.write(KEY, first)
    held = cache.read(KEY, shape=(3, 4), dtype=torch.float32)
    cache.write(KEY, second)
    read = cache.read(KEY, shape=(3, 4), dtype=torch.float32)
    assert read is not None
    assert held is not None
    assert torch.equal(held, first)
    assert torch.equal(read, second)
    assert [file.name for file in files(cache)] == [f"{KEY}.safetensors"]


def test_a_disk_that_takes_nothing_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EmbeddingCache(tmp_path / "cache")
    # A folder where the file should go: nothing can be moved there, and what was half written goes away.
    (tmp_path / "cache" / f"{KEY}.safetensors").mkdir(parents=True)
    cache.write(KEY, randn(3, 4))
    assert "could not be kept" in caplog.text
    assert [file.name for file in files(cache)] == [f"{KEY}.safetensors"]
    text = tiny_text(cache=EmbeddingCache(tmp_path / "new"))
    (tmp_path / "new").write_text("")
    caplog.clear()
    assert text.encode(["a cat"]).isfinite().all()
    assert "could not be kept" in caplog.text


def test_impossible_folders_and_keys_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        EmbeddingCache(tmp_path / "file")
    for key in ("../../etc", "", KEY.upper(), KEY + "0"):
        with pytest.raises(ConfigError, match="is not a SHA-256"):
            EmbeddingCache(tmp_path).read(key, shape=(1, 1), dtype=torch.float32)
