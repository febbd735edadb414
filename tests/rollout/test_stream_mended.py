"""What a stream does after a failure, and what it refuses before anything changes."""

import asyncio
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from arl2.errors import Arl2Error, ConfigError, SnapshotError, StreamError
from arl2.rollout.denoise import Rollout
from arl2.streams.snapshot_file import read_snapshot, write_snapshot
from rollout.streams import OTHER, PROMPT, same_bits, small_pipeline, take, uninterrupted
from support import randn


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for people, for whom nobody holds arguments against annotations."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def failing_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool) -> None:
    """The next call fails, before or after its work; those that follow do not."""
    real, calls = getattr(owner, name), []

    def fail(*given: Any, **named: Any) -> Any:
        calls.append(0)
        if len(calls) > 1:
            return real(*given, **named)
        if after:
            real(*given, **named)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize("after", [False, True])
def test_a_block_whose_decoding_failed_is_decoded_by_the_next_call(
    after: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3, rewind_kind="exact")
    take(stream, 2)
    with monkeypatch.context() as patch:
        failing_once(patch, pipe.codec, "decode", after=after)
        with pytest.raises(RuntimeError):
            next(stream)
        with pytest.raises(StreamError, match="not decoded yet"):
            stream.save(tmp_path / "x")
        assert same_bits(next(stream), uninterrupted("HS", False, 9)[2])
    with monkeypatch.context() as patch:
        failing_once(patch, pipe.codec, "decode", after=after)
        with pytest.raises(RuntimeError):
            next(stream)
    stream.rewind(1)
    again = next(stream)
    assert same_bits(again, uninterrupted("HS", False, 9)[3])
    assert not again.cut  # nobody had seen it


@pytest.mark.parametrize(("blocks", "guided"), [(0, False), (3, False), (3, True)])
def test_a_stream_whose_commit_failed_can_be_rewound(
    blocks: int, guided: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe = small_pipeline("HS", guided)
    stream = pipe.stream(PROMPT, seed=3, rewind_kind="exact")
    take(stream, blocks)
    last = type(pipe.transformer.layers[-1])
    real, calls = last.commit, []

    def commit(*given: Any) -> None:  # the last layer of the last memory is not written
        calls.append(0)
        if len(calls) > guided:
            raise KeyboardInterrupt
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(last, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    for action in (lambda: next(stream), lambda: stream.save(tmp_path / "x"), stream.fork):
        with pytest.raises(StreamError, match="failed half-way"):
            action()
    stream.rewind(1)
    expected = uninterrupted("HS", guided, 9)
    assert all(same_bits(one, other) for one, other in zip(take(stream, 2), expected[blocks:], strict=False))


def test_a_prompt_that_came_with_a_failed_block_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline("HS")
    expected, stream = (pipe.stream(PROMPT, seed=3, rewind_kind="exact") for _ in range(2))
    for one in (expected, stream):
        take(one, 3)
        one.change_prompt(OTHER, "refresh")
    with monkeypatch.context() as patch:
        failing_once(patch, Rollout, "make", after=True)
        with pytest.raises(RuntimeError):
            next(stream)
    stream.rewind(1)
    assert stream.prompt == OTHER
    assert same_bits(next(stream), next(expected))


def test_calls_at_the_same_time_queue() -> None:
    async def gather() -> list:
        stream = small_pipeline("HS").stream(PROMPT, seed=3)
        return await asyncio.gather(*(anext(stream) for _ in range(4)))

    blocks = sorted(asyncio.run(gather()), key=lambda block: block.index)
    assert all(same_bits(one, other) for one, other in zip(blocks, uninterrupted("HS", False, 9), strict=False))


@pytest.mark.parametrize("seed", [[-1], ["a"], "a", [1, 2], [2**64], 1.5, -1])
@pytest.mark.usefixtures("unchecked")
def test_refused_seeds_change_nothing(seed: Any, tmp_path: Path) -> None:
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3)
    take(stream, 2)
    for action in (stream.rewind, stream.fork):
        with pytest.raises(ConfigError):
            action(seed=seed)
    assert stream.index == 2
    stream.save(tmp_path / "x")
    assert same_bits(next(pipe.resume(tmp_path / "x")), uninterrupted("HS", False, 9)[2])


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_can_be_saved(tmp_path: Path) -> None:
    pipe, wide = small_pipeline("HS"), small_pipeline("SH", True)
    stream = pipe.stream(
        PROMPT,
        seed=[np.int64(3)],
        window=np.int64(9),
        sink=np.int64(0),
        rewind_blocks=np.int64(2),
        num_frames=np.int64(45),
        height=np.int64(32),
        steps=np.array([1000, 500]),
    )
    assert same_bits(next(stream), uninterrupted("HS", False, 9)[0])
    stream.save(tmp_path / "x")
    assert same_bits(next(pipe.resume(tmp_path / "x")), uninterrupted("HS", False, 9)[1])
    stream.fork(seed=np.int64(5)).save(tmp_path / "x")
    guided = wide.stream(PROMPT, guidance_scale=np.float32(2.5), num_inference_steps=np.int64(2))
    guided.save(tmp_path / "x")
    assert same_bits(next(wide.resume(tmp_path / "x")), next(guided))


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 3, 9, 32, 32, dtype=torch.uint8),
        np.zeros((9, 32, 32, 3), dtype=np.float32),
        torch.full((1, 3, 9, 32, 32), 255.0),
        np.zeros((32, 32, 3), dtype=np.uint8),
    ],
    ids=["tensor of bytes", "array of floats", "floats to 255", "one picture"],
)
@pytest.mark.usefixtures("unchecked")
def test_frames_of_another_range_are_refused(frames: Any) -> None:
    stream = small_pipeline("HS").stream(PROMPT)
    with pytest.raises(Arl2Error, match="give"):
        stream.extend_with(frames)


def test_what_is_done_with_a_block_does_not_reach_the_stream() -> None:
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3, known=uninterrupted("HS", False, 9)[0].latents)
    for block in take(stream, 3):
        block.latents.zero_()
    stream.rewind(3)
    blocks = take(stream, 3)
    expected = uninterrupted("HS", False, 9)
    assert all(torch.equal(one.latents, other.latents) for one, other in zip(blocks, expected, strict=False))


def test_each_piece_of_real_frames_is_a_cut(tmp_path: Path) -> None:
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT)
    next(stream)
    for frames in (24, 12):
        stream.extend_with(randn(1, 3, frames, 32, 32).clamp(-1, 1))
    stream.save(tmp_path / "x")
    for one in (stream, pipe.resume(tmp_path / "x")):
        assert [block.cut for block in take(one, 4)] == [True, False, True, False]


@pytest.mark.parametrize(
    "changed",
    [
        {"height": 2**16},
        {"width": 2**16},
        {"waiting_cuts": [1]},
        {"change": {"prompts": None, "mode": "soft"}},
        {"last": [[0.0, 3.0]]},
        {"seeds": [1.5]},
        {"waiting": 2**50},
    ],
    ids=str,
)
def test_crafted_facts_are_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3)
    next(stream)
    stream.prompt = OTHER
    stream.save(tmp_path / "x")
    facts, tensors = read_snapshot(tmp_path / "x")
    write_snapshot(tmp_path / "x", {**facts, **changed}, tensors)
    with pytest.raises(SnapshotError):
        pipe.resume(tmp_path / "x")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"shape": [0]', b'"shape": [0, 1180591620717411303424]'),
        (b'"shape": [0]', b'"shape": [0, 4503599627370496, 4503599627370496]'),
        (b'"checksum": "', b'"checksum": "\\ud800'),
    ],
)
def test_crafted_headers_are_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "x", {}, {"none": torch.empty(0)})
    raw = (tmp_path / "x").read_bytes()[8:].replace(old, new)
    (tmp_path / "x").write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(SnapshotError):
        read_snapshot(tmp_path / "x")


def test_a_light_snapshot_without_a_window_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = small_pipeline("HS").stream(PROMPT, window=None)
    take(stream, 7)
    stream.save(tmp_path / "x", "light")
    assert not caplog.records
    take(stream, 2)
    stream.save(tmp_path / "x", "light")
    assert "last 21 latent frames" in caplog.text
