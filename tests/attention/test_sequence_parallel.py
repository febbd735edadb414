"""A stream over two and four ranks is the stream of one, whatever happens to it; and each rank keeps its share."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import ContextParallelConfig
from safetensors.torch import load_file
from tests.attention.ulysses import FOUR, PAIRS, STREAMS, half_precision, keep, nbytes, pipeline, resumed, streamed

from arl2.attention.sequence_parallel import SequenceParallel
from arl2.errors import ConfigError, GeometryError
from arl2.kernels.rope import Rotation
from forked import program
from rollout.streams import PROMPT, latents_of, take
from support import ROUNDING, randn, relative

# Products over fewer tokens are summed in another order, and six blocks build on each other's differences.
NEAR = 1e-5
RUNS = [*((2, name, 2 * pair) for pair in (0, 1) for name in PAIRS[pair]), (4, FOUR, 0)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All streams of one, two and four ranks, in one folder."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in STREAMS:
        keep(streamed(name, folder / "1" / name), folder / "1" / name / "rank-0.safetensors")
    done = program("tests.attention.ulysses", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def made_by(place: Path, ranks: int, name: str, rank: int, by: str = "rank"):
    return load_file(place / str(ranks) / name / f"{by}-{rank}.safetensors")


def notes(place: Path, rank: int):
    return json.loads((place / f"notes-{rank}.json").read_text())


@pytest.mark.parametrize(("ranks", "name", "first"), RUNS)
def test_several_ranks_are_one(ranks, name, first, place):
    """Blocks, a fork, a prompt change, a rewind; and whoever saved a snapshot, whoever resumes it."""
    alone, together = made_by(place, 1, name, 0), made_by(place, ranks, name, first)
    assert together.keys() > alone.keys()
    for key, x in together.items():
        assert relative(x, alone[key.split(" of ")[0]]) < NEAR, key
    for rank in range(first + 1, first + ranks):
        other = made_by(place, ranks, name, rank)
        assert all(torch.equal(other[key], x) for key, x in together.items())


@pytest.mark.parametrize(("ranks", "name", "first"), RUNS)
def test_one_rank_resumes_what_several_saved(ranks, name, first, place):
    alone = made_by(place, 1, name, 0)
    for key, x in resumed(name, place / str(ranks) / name).items():
        assert relative(x, alone[key]) < NEAR, key


@pytest.mark.parametrize("pair", [0, 1])
def test_two_ranks_resume_what_four_saved(pair, place):
    alone = made_by(place, 1, FOUR, 0)
    for key, x in made_by(place, 4, FOUR, 2 * pair, by="two").items():
        assert relative(x, alone[key]) < NEAR, key


def test_half_precision_travels_as_it_is(place):
    alone = half_precision()
    for rank in range(4):
        together = load_file(place / f"half-{rank}.safetensors")["flow"]
        assert together.dtype == alone.dtype
        assert relative(together, alone) < ROUNDING[torch.bfloat16]


@pytest.mark.parametrize(("ranks", "name", "first"), RUNS)
def test_memory_is_shared(ranks, name, first, place):
    kept = [notes(place, rank)[f"bytes {name} {ranks}"] for rank in range(first, first + ranks)]
    assert kept == [nbytes(name) // ranks] * ranks


def test_what_cannot_be_split_is_refused_in_a_sentence(place):
    for rank in range(4):
        said = notes(place, rank)
        assert said["heads"].startswith("ConfigError: 2 heads cannot be shared evenly by 4 ranks; start one of 1, 2")
        assert said["three"].startswith("ConfigError: Got ulysses_degree 3, but 4 processes run here")
        assert said["kind"].startswith("ConfigError: Layers of the kind H (hybrid) do not say how they split")
        assert said["stream"].startswith("ConfigError: This prompt context was made by a model of")
        assert said["memory"].startswith("MemoryMismatchError: This memory belongs to a model of")
        assert said["staged"].startswith("ConfigError: This stream is split over 4 ranks; call save()")
        assert said["gradients"].startswith("ConfigError: This model is split over 4 ranks")
        assert said["clip"].startswith("ConfigError: This model is split over 4 ranks, which generate streams")
        assert said["compiled"].startswith("ConfigError: Passes that 4 ranks share are not compiled or recorded")
        assert said["tokens"].startswith("GeometryError: A frame of 1 tokens cannot be shared by 4 ranks")
        assert said["unwritable"].startswith("SnapshotError")
        assert said["goes on"] == [1, 3, 3, 4, 6]
    assert "its own message" in notes(place, 1)["unwritable"]


def test_nobody_waits_for_a_rank_that_is_lost(place):
    sentence = "ProcessLostError: Another rank of this stream has ended or does not answer"
    assert notes(place, 0)["silent"].startswith(sentence)
    assert notes(place, 0)["silent seconds"] < 10
    for rank in range(3):
        assert notes(place, rank)["gone"].startswith(sentence)
        assert notes(place, rank)["gone seconds"] < 10


def test_one_process_alone_is_left_alone():
    pipe = pipeline("mixed")
    before = latents_of(take(pipe.stream(PROMPT, seed=3), 2))
    pipe.enable_parallelism()
    assert torch.equal(latents_of(take(pipe.stream(PROMPT, seed=3), 2)), before)
    pipe.enable_parallelism(ulysses_degree=1)
    with pytest.raises(ConfigError, match=r"ulysses_degree 2, but 1 process runs here: start .* torchrun"):
        pipe.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    with pytest.raises(ConfigError, match="Got ring_degree 2"):
        pipe.enable_parallelism(config=ContextParallelConfig(ring_degree=2))
    with pytest.raises(ConfigError, match="give diffusers' ContextParallelConfig"):
        pipe.enable_parallelism(config=2)
    with pytest.raises(ConfigError, match="Got both config and ulysses_degree"):
        pipe.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2), ulysses_degree=2)
    with pytest.raises(ConfigError, match="whole number from 1"):
        pipe.enable_parallelism(ulysses_degree=0)


@pytest.mark.parametrize(("tokens", "ranks"), [(6, 1), (6, 2), (6, 4), (7, 3), (30 * 52, 8)])
def test_every_token_is_on_one_rank(tokens, ranks):
    everyone = [SequenceParallel(rank, ranks) for rank in range(ranks)]
    parts = [one.own_part(tokens) for one in everyone]
    assert [i for part in parts for i in range(tokens)[part]] == [*range(tokens)]
    assert max(sizes := everyone[0].frame_parts(tokens)) - min(sizes) <= 1
    x, rotation = randn(2, 3 * tokens, 4), Rotation.of_grid(range(3), 1, tokens, 12, "cpu")
    own = [one.own_tokens(x, frame_tokens=tokens).unflatten(1, (3, -1)) for one in everyone]
    assert torch.equal(torch.cat(own, dim=2).flatten(1, 2), x)
    turned = [rotation.within_frames(tokens, part).cos.unflatten(0, (3, -1)) for part in parts]
    assert torch.equal(torch.cat(turned, dim=1).flatten(0, 1), rotation.cos)


def test_fewer_tokens_than_ranks_are_refused():
    with pytest.raises(GeometryError, match="A frame of 3 tokens cannot be shared by 4 ranks; use fewer ranks"):
        SequenceParallel(0, 4).frame_parts(3)
