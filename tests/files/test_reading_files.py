"""Files that others made: whole ones are read as they are, any other is one sentence, and nothing in them runs."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from arl2.errors import CheckpointError, ConfigError
from arl2.files.exact import Misfits, fill, require_exact, shapes_of
from arl2.files.plain import read_json, safetensors_of, shard_names
from arl2.files.regular import first_line, parsed_by_others, read_text
from arl2.files.tensors import read_safetensors, require_weights, unpickle
from support import randn

TENSORS = {"a": randn(3, 4), "b": randn(2, seed=1, dtype=torch.bfloat16)}


class Code:
    """What would leave a folder behind when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tensors in a zip archive, in the format before it, and as safetensors."""
    folder = tmp_path_factory.mktemp("files")
    torch.save(TENSORS, folder / "new.pt")
    torch.save(TENSORS, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(TENSORS, folder / "safe.safetensors")
    return folder


def read(path: Path) -> Any:
    return read_safetensors(path) if path.suffix == ".safetensors" else unpickle(path, what=".pt file")


def without(path: Path, name: str, content: bytes) -> Path:
    """A neighbour of a file with other content."""
    other = path.with_name(name + path.suffix)
    other.write_bytes(content)
    return other


def refusal(action: Callable[[], object]) -> str | None:
    """The sentence of a refusal; None if nothing is refused. Any other error is a fault."""
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return None


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


@pytest.mark.parametrize("name", ["new.pt", "old.pt", "safe.safetensors"])
def test_whole_files_are_read_as_they_are(folder: Path, name: str) -> None:
    assert equal(read(folder / name), TENSORS)


@pytest.mark.parametrize("name", ["new.pt", "old.pt", "safe.safetensors"])
def test_cut_files_are_refused(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for end in {0, 1, 7, 8, 9, 100, *range(0, len(content), 97), len(content) - 1}:
        with pytest.raises(CheckpointError, match=r"is not a whole|so not a whole|would run code"):
            read(without(folder / name, "cut", content[:end]))


@pytest.mark.parametrize("name", ["new.pt", "old.pt", "safe.safetensors"])
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=0, max_size=4)), min_size=1, max_size=4))
def test_damage_is_one_sentence_or_not_seen(folder: Path, name: str, changes: list[tuple[int, bytes]]) -> None:
    content = (folder / name).read_bytes()
    for place, put in changes:
        place %= len(content)
        content = content[:place] + put + content[place + 1 :]
    path = without(folder / name, "damaged", content)
    said = refusal(lambda: read(path))
    assert said is None or (said.startswith(f"{path} ") and "\n" not in said)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=0, max_size=3))
def test_a_damaged_pickle_in_a_sound_archive_is_refused_or_read(folder: Path, place: int, put: bytes) -> None:
    """The archive's own checksums do not help against who makes an archive."""
    with zipfile.ZipFile(folder / "new.pt") as whole, zipfile.ZipFile(folder / "made.pt", "w") as made:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("data.pkl"):
                at = place % len(content)
                content = content[:at] + put + content[at + 1 :]
            made.writestr(name, content)
    said = refusal(lambda: unpickle(folder / "made.pt", what=".pt file"))
    assert said is None or said.startswith(f"{folder / 'made.pt'} ")


@pytest.mark.parametrize("writer", ["new", "old", "pickle"])
def test_code_in_a_file_never_runs(tmp_path: Path, writer: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "code.pt"
    content = {"weights": torch.ones(2), "more": Code(mark)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Code(mark)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "new")
    with pytest.raises(CheckpointError, match="would run code when read, which is never allowed"):
        unpickle(path, what=".pt file")
    assert not mark.exists()
    # The trap is a real one.
    call, arguments = Code(mark).__reduce__()
    call(*arguments)
    assert mark.is_dir()


def test_files_that_cannot_be_mapped_are_refused_where_they_must_be(folder: Path) -> None:
    assert equal(unpickle(folder / "new.pt", what=".pth file", old=False), TENSORS)
    with pytest.raises(CheckpointError, match=r"is not a whole \.pth file, or one of torch before 1\.6"):
        unpickle(folder / "old.pt", what=".pth file", old=False)


def test_a_missing_file_of_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors' cannot be read \(No such"):
        read_safetensors(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2).to_sparse(), torch.ones(0), torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)],
)
def test_only_dense_numbers_are_weights(tensor: Tensor) -> None:
    require_weights(TENSORS, "the file")
    with pytest.raises(CheckpointError, match=r"^the file: x is \[\d\] torch\..*weights are dense, not empty, and of"):
        require_weights({**TENSORS, "x": tensor}, "the file")


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(FLOATS))


@settings(max_examples=25, deadline=None)
@given(JSON)
def test_a_json_object_is_read_as_it_is(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "values.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    assert read_json(path) == values
    content = path.read_bytes()
    for end in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match="is not readable JSON"):
            read_json(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not readable JSON"),
        (b"weights", "is not readable JSON"),
        (b'{"a": "\xff"}', "is not readable JSON"),
        (b"[" * 200_000, "is not readable JSON"),
        (b"[1]", "holds a list; a JSON object is needed"),
        (b"3", "holds a int; a JSON object is needed"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"nothing\.json is not there"):
        read_json(tmp_path / "nothing.json")
    with pytest.raises(CheckpointError, match="is a folder; give a file"):
        read_json(tmp_path)


def index(folder: Path, weight_map: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("a./\\~:\0"), max_size=8), st.booleans())
def test_no_name_in_an_index_leads_out_of_its_folder(
    tmp_path_factory: pytest.TempPathFactory, stem: str, suffixed: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    name = stem + ".safetensors" * suffixed
    path = index(folder, {"x": name})
    said = refusal(lambda: shard_names(path))
    if said is None:
        assert shard_names(path) == [name]
        assert Path(os.path.normpath(folder / name)).parent == folder
    else:
        assert "it must be a .safetensors file in the same folder" in said
        assert not suffixed or set(name) & set("/\\:")


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/a.safetensors", "b/../a.safetensors", "..", "a.pt", 3, {}])
def test_names_that_are_none_are_refused(tmp_path: Path, name: object) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    index(tmp_path, {"a": "a.safetensors", "b": name})
    with pytest.raises(CheckpointError, match=r"must be a \.safetensors file in the same folder"):
        safetensors_of(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], "a.safetensors"])
def test_an_index_without_files_is_refused(tmp_path: Path, weight_map: object) -> None:
    with pytest.raises(CheckpointError, match="has no weight_map"):
        shard_names(index(tmp_path, weight_map))
    with pytest.raises(CheckpointError, match="is not there"):
        shard_names(tmp_path / "other.json")
    os.truncate(tmp_path / "model.safetensors.index.json", 10**9)  # takes no room on disk
    with pytest.raises(CheckpointError, match="is too large"):
        shard_names(tmp_path / "model.safetensors.index.json")


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
        safetensors_of(tmp_path)
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file(TENSORS, one)
    assert safetensors_of(tmp_path) == [one]
    save_file(TENSORS, two)
    with pytest.raises(CheckpointError, match=r"has 2 \.safetensors files and no index"):
        safetensors_of(tmp_path)
    index(tmp_path, {"x": two.name, "y": one.name, "z": two.name})
    assert safetensors_of(tmp_path) == [one, two]
    two.unlink()
    with pytest.raises(CheckpointError, match=r"lacks 2\.safetensors, which its index names"):
        safetensors_of(tmp_path)


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n one \ntwo")) == "one "
    assert len(first_line(ValueError("x" * 999))) == 200


NAMES = st.sets(st.sampled_from("abcdefgh"))


@given(NAMES, NAMES, NAMES)
def test_misfits_are_what_differs(expected: set[str], found: set[str], wide: set[str]) -> None:
    shapes = dict.fromkeys(sorted(expected), (2, 3))
    tensors = {name: torch.zeros((2, 4) if name in wide else (2, 3)) for name in sorted(found)}
    misfits = Misfits.between(shapes, tensors)
    assert set(misfits.missing) == expected - found
    assert set(misfits.extra) == found - expected
    assert set(misfits.misshapen) == expected & found & wide
    phrases = misfits.one_by_one()
    assert len(phrases) == len(expected ^ found) + len(expected & found & wide)
    said = refusal(lambda: require_exact(shapes, tensors, where="here", what="thing"))
    assert (said is None) == (not phrases)
    assert said is None or said.startswith("here is not exactly one thing: tensors ")


def test_misfits_are_named() -> None:
    found = {"a": torch.zeros(3), "y": torch.zeros(1), "z": torch.zeros(1)}
    misfits = Misfits.between({"a": (4,), "b": (1,), "c": (1,), "d": (1,), "e": (1,)}, found)
    assert misfits.by_kind() == (
        "4 missing (first b, c, d); 2 unexpected (first y, z); 1 of a wrong shape (first a [3] instead of [4])"
    )
    assert misfits.one_by_one()[-2:] == ["z is unexpected", "a is [3] instead of [4]"]


def test_a_module_is_filled_without_a_copy() -> None:
    with torch.device("meta"):
        module = nn.Linear(4, 3)
    tensors = {"weight": randn(3, 4), "bias": randn(3)}
    assert shapes_of(module) == {"weight": (3, 4), "bias": (3,)}
    fill(module, tensors, dtype=torch.float32)
    assert module.weight.data_ptr() == tensors["weight"].data_ptr()
    fill(module, tensors, dtype=torch.bfloat16, dtype_of=lambda name, dtype: torch.float64 if name == "bias" else dtype)
    assert (module.weight.dtype, module.bias.dtype) == (torch.bfloat16, torch.float64)
    with pytest.raises(ConfigError, match=r"The compute dtype is torch\.int8; use torch\.float32"):
        fill(module, tensors, dtype=torch.int8)


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")
def test_pipes_and_huge_files_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(" " * 1000 + "{}")
    for read, error in ((read_json, CheckpointError), (read_text, ConfigError)):
        with pytest.raises(error, match="is a pipe or a device; give a regular file"):
            read(tmp_path / "a.json", limit=100)
        with pytest.raises(error, match=r"too large|more than"):
            read(tmp_path / "b.json", limit=100)
    assert read_json(tmp_path / "b.json") == {}
    (tmp_path / "c.json").write_text('{"a": ' + "[" * 200 + "]" * 200 + "}")
    with pytest.raises(CheckpointError, match="nested more than 100 deep"):
        read_json(tmp_path / "c.json")
    (tmp_path / "d.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match="the key 'a' appears twice"):
        read_json(tmp_path / "d.json")


@pytest.mark.parametrize(
    "lack", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()]
)
def test_too_little_memory_is_no_fault_of_the_file(lack: BaseException) -> None:
    with pytest.raises(type(lack)) as caught, parsed_by_others(Path("x.safetensors"), "a whole file"):
        raise lack
    assert caught.value is lack
    with pytest.raises(CheckpointError, match="is not a whole file"), parsed_by_others(Path("x"), "a whole file"):
        raise RuntimeError("broken")
