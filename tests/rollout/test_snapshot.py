"""The file of a snapshot: whole or refused, with a reason, whatever happens to its bytes."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from arl2.errors import SnapshotError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams import snapshot_file
from arl2.streams.snapshot_file import read_snapshot, write_snapshot
from rollout.streams import OTHER, PROMPT, SMALL, same_bits, small_pipeline, take, uninterrupted
from support import randn, tiny_model

TENSORS = {"half": randn(3, 5).bfloat16(), "count": torch.tensor(7), "none": torch.empty(0), "wide": randn(2, 9)}

VERSION_1 = (
    "QAEAAAAAAAB7Il9fbWV0YWRhdGFfXyI6IHsiY2hlY2tzdW0iOiAiOThhMGMwNTUxYWYwNWYxOGFlMjc0ZDYxOTUzZWE1OWY1ZWYx",
    "NmFiOTBmMDA5ZjU4MGQ1ZGFkYjI0OWFhZWFlNiIsICJmb3JtYXQiOiAiYXJsMi1zdHJlYW0iLCAidmVyc2lvbiI6ICIxIiwgImFy",
    "bDIiOiAiMC4xLjAiLCAiZmFjdHMiOiAie1wia2luZFwiOiBcImxpZ2h0XCJ9In0sICJhIjogeyJkdHlwZSI6ICJGMzIiLCAic2hh",
    "cGUiOiBbMl0sICJkYXRhX29mZnNldHMiOiBbMCwgOF19LCAiYiI6IHsiZHR5cGUiOiAiQkYxNiIsICJzaGFwZSI6IFsxXSwgImRh",
    "dGFfb2Zmc2V0cyI6IFs4LCAxMF19fSAgICAgIAAAwD8AAADAAD8=",
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshot") / "stream.arl2"
    stream = small_pipeline("HS").stream(PROMPT, seed=3)
    take(stream, 4)
    stream.prompt = OTHER
    stream.save(path)
    return path


def test_any_safetensors_reader_opens_it(snapshot: Path) -> None:
    facts, tensors = read_snapshot(snapshot)
    assert (facts["kind"], facts["seeds"], facts["index"], facts["prompts"]) == ("exact", [3], 4, PROMPT)
    with safe_open(snapshot, framework="pt") as file:
        assert (file.metadata()["format"], file.metadata()["version"]) == ("arl2-stream", "1")
        assert {name: file.get_tensor(name).dtype for name in file.keys()} == {  # noqa: SIM118  # not a dict
            name: tensor.dtype for name, tensor in tensors.items()
        }
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_files_of_version_1_stay_readable(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(base64.b64decode("".join(VERSION_1)))
    facts, tensors = read_snapshot(tmp_path / "x")
    assert facts == {"kind": "light"}
    assert tensors["a"].tolist() == [1.5, -2.0]
    assert (tensors["b"].dtype, tensors["b"].tolist()) == (torch.bfloat16, [0.5])


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "x", {"a": [1, None, 0.1, "ü"]}, TENSORS)
    facts, tensors = read_snapshot(tmp_path / "x")
    assert facts == {"a": [1, None, 0.1, "ü"]}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Every bit of a small file: length, JSON, facts, checksum, every tensor."""
    path = tmp_path / "x"
    write_snapshot(path, {"facts": 1}, TENSORS)
    whole = path.read_bytes()
    for place in range(len(whole)):
        bit = 1 << place % 8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(SnapshotError):
            read_snapshot(path)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.floats(0, 1, exclude_max=True))
def test_a_damaged_snapshot_resumes_nothing(snapshot: Path, tmp_path: Path, place: float, bit: int, cut: float) -> None:
    whole = snapshot.read_bytes()
    at, length = int(place * len(whole)), int(cut * len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
    for damaged in (flipped, whole[:length], whole + b"\0"):
        (tmp_path / "x").write_bytes(damaged)
        with pytest.raises(SnapshotError):
            small_pipeline("HS").resume(tmp_path / "x")


def test_a_newer_version_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(snapshot_file, "VERSION", 2)
        write_snapshot(tmp_path / "x", {}, TENSORS)
    with pytest.raises(SnapshotError, match=r"version 2 of the format; this arl2 \(.*\) reads version 1: update it"):
        read_snapshot(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a snapshot, or is truncated"),
        (b"\xff" * 64, "not a snapshot, or is truncated"),
        (b"\x02\0\0\0\0\0\0\0{}", "not a snapshot of a stream"),
        (b"\x02\0\0\0\0\0\0\0[]", "damaged header"),
        (b"\x08\0\0\0\0\0\0\0[[[[[[[[", "damaged header"),
    ],
)
def test_other_files_are_none(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(SnapshotError, match=said):
        read_snapshot(tmp_path / "x")
    with pytest.raises(SnapshotError, match="cannot be read"):
        read_snapshot(tmp_path / "missing")


def other_weights() -> ARL2Pipeline:
    pipe = small_pipeline("HS")
    model = tiny_model("HS", seed=1, block_frames=3, text_len=pipe.text.length)
    return ARL2Pipeline(model, pipe.codec, pipe.text, SMALL)


def in_half(folder: Path) -> ARL2Pipeline:
    small_pipeline("HS").save_pretrained(folder)
    return ARL2Pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda _: small_pipeline("SH"), "of a model of plan HS, .* has plan SH"),
        (in_half, r"of the dtype float32, but this pipeline has bfloat16; load the model with torch_dtype=torch\.fl"),
        (lambda _: other_weights(), "of weights with the hash"),
    ],
)
def test_another_model_is_refused(
    snapshot: Path, tmp_path: Path, other: Callable[[Path], ARL2Pipeline], said: str
) -> None:
    with pytest.raises(SnapshotError, match=said):
        other(tmp_path).resume(snapshot)


CHANGES: list[tuple[str, Any]] = [
    ("kind", "heavy"),
    ("batch", 2),
    ("batch", 10**9),
    ("window", 3),
    ("window", 2**60),
    ("sink", 1),
    ("sink_positions", "elsewhere"),
    ("height", 8),
    ("frames", 6),
    ("index", 3),
    ("seeds", []),
    ("seeds", [-1]),
    ("seeds", ["1"]),
    ("texts", 2),
    ("last", [[0, 3]]),
    ("last", "all"),
    ("waiting", 1),
    ("change", {"mode": "soft"}),
    ("memories", []),
    ("memories", [{}]),
    ("sampler", {"kind": "few-step"}),
    ("first_block_frames", 9),
    ("cut", 1),
    ("prompts", 5),
    ("model", None),
]


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=[f"{name}={value}" for name, value in CHANGES])
def test_facts_that_make_no_sense_are_refused(snapshot: Path, tmp_path: Path, name: str, value: Any) -> None:
    """A file with a right checksum may still be made by anyone."""
    facts, tensors = read_snapshot(snapshot)
    write_snapshot(tmp_path / "x", {**facts, name: value}, tensors)
    with pytest.raises(SnapshotError):
        small_pipeline("HS").resume(tmp_path / "x")
    write_snapshot(tmp_path / "x", {key: x for key, x in facts.items() if key != name}, tensors)
    with pytest.raises(SnapshotError, match=f"lacks its {name}"):
        small_pipeline("HS").resume(tmp_path / "x")


def test_tensors_that_make_no_sense_are_refused(snapshot: Path, tmp_path: Path) -> None:
    facts, tensors = read_snapshot(snapshot)
    for name, tensor in tensors.items():
        if name.startswith("decoder"):
            continue  # a codec's own affair, which it finds out at the next block
        for other in ({}, {name: tensor[..., :-1].contiguous()}):
            write_snapshot(tmp_path / "x", facts, {key: x for key, x in tensors.items() if key != name} | other)
            with pytest.raises(SnapshotError):
                small_pipeline("HS").resume(tmp_path / "x")


def test_a_save_that_fails_leaves_what_was_there(snapshot: Path, tmp_path: Path) -> None:
    stream = small_pipeline("HS").stream(PROMPT, seed=3)
    first = next(stream)
    path = tmp_path / "x"
    path.write_bytes(snapshot.read_bytes())
    with pytest.raises(KeyError):
        write_snapshot(path, {}, {"complex": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(SnapshotError, match="cannot be written"):
        stream.save(tmp_path / "missing" / "x")
    assert path.read_bytes() == snapshot.read_bytes()
    stream.save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["x"]
    assert same_bits(next(small_pipeline("HS").resume(path)), uninterrupted("HS", False, 9)[1])
    assert same_bits(first, uninterrupted("HS", False, 9)[0])


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("no memory left"), RuntimeError("a fault of ours")])
def test_faults_while_memory_is_filled_are_not_called_damage(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, fault: RuntimeError
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise fault

    pipe = small_pipeline("HS")
    monkeypatch.setattr(pipe.transformer, "allocate_memory", failing)
    with pytest.raises(type(fault), match=str(fault)):
        pipe.resume(snapshot)
