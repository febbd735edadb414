"""The first generated block has a step list of its own, also after conditioning frames, however a stream goes."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arl2.errors import SnapshotError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.snapshot import sampler_metadata, sampler_of
from arl2.streams.snapshot_file import read_snapshot, write_snapshot
from arl2.streams.stream import Stream
from pipeline.stand_in import SETTINGS, stand_in_pipeline
from rollout.streams import GUIDED, PROMPT, same_bits
from support import randn, relative, tiny_model

FEW = replace(SETTINGS, steps=(1000, 500), first_block_steps=(1000, 750, 500, 250), height=32, width=32)
KINDS: tuple[Any, ...] = ("light", "exact")


@pytest.fixture(scope="module", params=[3, 1], ids=["chunkwise", "framewise"])
def pipe(request: pytest.FixtureRequest) -> ARL2Pipeline:
    """All hybrid, so that a light snapshot gives the same bits, too."""
    made = stand_in_pipeline("HH", FEW)
    if request.param == 1:
        transformer = tiny_model("HH", block_frames=1, text_len=made.text.length)
        made = ARL2Pipeline(transformer, made.codec, made.text, FEW)
        made.set_progress_bar_config(disable=True)
    return made


class Passes:
    """How many denoising passes each block took."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}

    def __call__(self, _: Any, step: int, timestep: float, told: dict[str, Any]) -> None:
        self.of[told["block"]] = step + 1


def known_of(pipe: ARL2Pipeline, blocks: int) -> torch.Tensor:
    return randn(1, 3, blocks * pipe.block_frames, 4, 4, seed=5)


def take(stream: Stream, blocks: int) -> list[Any]:
    return [next(stream) for _ in range(blocks)]


@pytest.mark.parametrize("known", [0, 1, 2])
def test_the_first_generated_block_has_its_own_steps(pipe: ARL2Pipeline, known: int) -> None:
    passes = Passes()
    latents = known_of(pipe, known) if known else None
    take(pipe.stream(PROMPT, known=latents, callback_on_step_end=passes), known + 3)
    assert passes.of == {known: 4, known + 1: 2, known + 2: 2}


def test_real_frames_before_the_first_block_and_after_it(pipe: ARL2Pipeline) -> None:
    """A stream has one first generated block: later real frames do not make another."""
    passes = Passes()
    stream = pipe.stream(PROMPT, callback_on_step_end=passes)
    frames = pipe.codec.frames_of(0, pipe.block_frames)
    stream.extend_with(randn(1, 3, frames, 32, 32).clamp(-1, 1))
    take(stream, 2)
    stream.extend_with(randn(1, 3, 4 * pipe.block_frames, 32, 32).clamp(-1, 1))
    take(stream, 2)
    assert passes.of == {1: 4, 3: 2}


@pytest.mark.parametrize("kind", KINDS)
def test_rewinding_to_right_after_known_frames(pipe: ARL2Pipeline, kind: Any) -> None:
    stream = pipe.stream(PROMPT, seed=3, known=known_of(pipe, 2), rewind_kind=kind)
    before = take(stream, 5)
    stream.rewind(3)
    assert all(map(same_bits, before[2:], take(stream, 3)))
    stream.rewind(2)  # the first generated block stays: the next is another
    assert all(map(same_bits, before[3:], take(stream, 2)))
    stream.rewind(4)  # to between the known blocks
    assert all(map(same_bits, before[1:], take(stream, 4)))


def test_forks_before_and_after_it(pipe: ARL2Pipeline) -> None:
    stream = pipe.stream(PROMPT, seed=3, known=known_of(pipe, 1))
    blocks = take(stream, 1)
    early = stream.fork()
    blocks += take(stream, 2)
    late = stream.fork()
    blocks += take(stream, 1)
    assert all(map(same_bits, blocks[1:], take(early, 3)))
    assert same_bits(blocks[3], next(late))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saved", [1, 2, 3])
def test_resuming_before_and_after_it(pipe: ARL2Pipeline, kind: Any, saved: int, tmp_path: Path) -> None:
    """Between the known blocks, right after them, and after the first generated one."""
    stream = pipe.stream(PROMPT, seed=3, known=known_of(pipe, 2))
    take(stream, saved)
    stream.save(tmp_path / "s.arl2", kind=kind)
    later = take(stream, 3)
    resumed = pipe.resume(tmp_path / "s.arl2")
    again = take(resumed, 3)
    assert all(relative(one.latents, other.latents) < 1e-5 for one, other in zip(later, again, strict=True))
    assert kind == "light" or all(map(same_bits, later, again))
    twice = take(resumed.fork(), 1)[0]
    assert same_bits(twice, next(resumed))


def test_a_snapshot_of_an_earlier_version(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    """Its first block counts as generated, and all its latents as well."""
    stream = pipe.stream(PROMPT, seed=3)
    take(stream, 1)
    stream.save(tmp_path / "s.arl2")
    metadata, tensors = read_snapshot(tmp_path / "s.arl2")
    assert (metadata["first_generated"], metadata["last_known"]) == (0, [False])
    for name in ("first_generated", "last_known", "sinks_known"):
        del metadata[name]
    write_snapshot(tmp_path / "old.arl2", metadata, tensors)
    assert same_bits(next(stream), next(pipe.resume(tmp_path / "old.arl2")))


@pytest.mark.parametrize(
    ("name", "value"), [("first_generated", 1), ("first_generated", "0"), ("last_known", [0]), ("last_known", [])]
)
def test_a_snapshot_that_cannot_be(pipe: ARL2Pipeline, tmp_path: Path, name: str, value: Any) -> None:
    stream = pipe.stream(PROMPT, seed=3)
    take(stream, 1)
    stream.save(tmp_path / "s.arl2")
    metadata, tensors = read_snapshot(tmp_path / "s.arl2")
    write_snapshot(tmp_path / "bad.arl2", {**metadata, name: value}, tensors)
    with pytest.raises(SnapshotError, match=f"{name} .*; it is damaged"):
        pipe.resume(tmp_path / "bad.arl2")


def test_old_snapshots_of_unipc_continue_on_diffusers_grid() -> None:
    for solver in ("euler", "unipc", "unipc-diffusers"):
        sampler = replace(GUIDED, solver=solver).sampler()
        assert sampler_of(sampler_metadata(sampler)) == sampler
    old = {**sampler_metadata(replace(GUIDED, solver="unipc").sampler()), "kind": "unipc"}
    assert sampler_of(old).solver == "unipc-diffusers"  # type: ignore[union-attr]


class Commits:
    """The timestep of every cache-update pass."""

    def __init__(self, pipe: ARL2Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timesteps: list[float] = []
        commit = pipe.transformer.commit

        def watched(latents: Any, timestep: torch.Tensor, *rest: Any) -> None:
            self.timesteps.append(float(timestep.unique()))
            commit(latents, timestep, *rest)

        monkeypatch.setattr(pipe.transformer, "commit", watched)

    def since(self) -> list[float]:
        found, self.timesteps = self.timesteps, []
        return found


def test_known_frames_are_committed_at_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever ``context_noise`` is; also where they are committed again."""
    pipe = stand_in_pipeline("SH", FEW)
    commits = Commits(pipe, monkeypatch)
    stream = pipe.stream(PROMPT, seed=3, known=known_of(pipe, 1), context_noise=100)
    take(stream, 2)
    assert commits.since() == [0, 100]
    stream.extend_with(randn(1, 3, 12, 32, 32).clamp(-1, 1))
    take(stream, 1)
    assert commits.since() == [0]
    stream.change_prompt("a blue box bounces", "refresh")
    take(stream, 1)
    assert commits.since() == [0, 100, 0, 100]  # KV re-caching of all three, then the new block
    stream.save(tmp_path / "s.arl2", kind="light")
    pipe.resume(tmp_path / "s.arl2")
    assert commits.since() == [100, 0, 100]  # the window has 9 frames
    stream.rewind(1)
    assert commits.since() == [0, 100, 0]
    stream.fork().change_prompt("a blue box bounces", "cut")
    pipe(PROMPT, num_frames=21, known=known_of(pipe, 1), context_noise=50, output_type="latent")
    assert commits.since() == [0, 50]


def test_sinks_that_were_known_are_committed_at_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe = stand_in_pipeline("SH", FEW)
    commits = Commits(pipe, monkeypatch)
    stream = pipe.stream(PROMPT, known=known_of(pipe, 1), context_noise=100, window=9, sink=3)
    take(stream, 6)
    stream.save(tmp_path / "s.arl2", kind="light")
    commits.since()
    pipe.resume(tmp_path / "s.arl2")
    assert commits.since() == [0, 100, 100, 100]


def test_candidates_are_for_a_first_block_from_the_prompt_alone(caplog: pytest.LogCaptureFixture) -> None:
    pipe = stand_in_pipeline("SH", FEW)
    with caplog.at_level(logging.WARNING):
        passes = Passes()
        take(pipe.stream(PROMPT, known=known_of(pipe, 1), first_block_candidates=6, callback_on_step_end=passes), 2)
    assert passes.of == {1: 4}
    assert "first_block_candidates 6 has no effect: the video starts with given frames" in caplog.text
