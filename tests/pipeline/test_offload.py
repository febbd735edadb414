"""Pipelines with offloaded layers, and several streams of one pipeline: the bits of each alone."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arl2.errors import ConfigError
from arl2.pipeline import assemble
from arl2.pipeline.assemble import load_components
from arl2.pipeline.options import ModelSource, SamplingOptions
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.pipeline.source import open_pipeline
from arl2.streams.stream import Stream
from pipeline.stand_in import stand_in_folder, stand_in_pipeline

PROMPTS = ("a red circle moves right on navy", "a blue square moves up on white")


def begun(pipe: ARL2Pipeline, number: int) -> Stream:
    return pipe.stream(PROMPTS[number], seed=number, num_frames=57, rewind_blocks=2)


def steps(stream: Stream) -> Any:
    """A stream's life, video by video, with a change of the prompt and a rewind."""
    for block in range(5):
        if block == 2:
            stream.change_prompt("a green triangle bounces on beige", "refresh")
        if block == 4:
            stream.rewind(1)
        yield next(stream).video


@pytest.fixture(scope="module")
def alone() -> list[list[Tensor]]:
    pipe = stand_in_pipeline("SHH")
    return [list(steps(begun(pipe, number))) for number in range(2)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) == 5 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("offloaded", [False, True])
def test_two_streams_by_turns_have_the_bits_of_each_alone(alone, offloaded):
    pipe = stand_in_pipeline("SHH")
    if offloaded:
        pipe.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1, use_stream=True)
    lives = [steps(begun(pipe, number)) for number in range(2)]
    made: list[list[Tensor]] = [[], []]
    for _ in range(5):
        for number in (1, 0):
            made[number].append(next(lives[number]))
    assert all(same(made[number], alone[number]) for number in range(2))


@pytest.mark.parametrize("offloaded", [False, True])
def test_two_streams_on_two_threads_have_the_bits_of_each_alone(alone, offloaded):
    pipe = stand_in_pipeline("SHH")
    if offloaded:
        pipe.enable_group_offload("cpu")
    made: dict[int, list[Tensor]] = {}
    barrier = threading.Barrier(2)

    def live(number: int) -> None:
        barrier.wait(timeout=60)
        made[number] = list(steps(begun(pipe, number)))

    threads = [threading.Thread(target=live, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert all(same(made[number], alone[number]) for number in range(2))


def test_snapshots_go_from_one_to_the_other(tmp_path: Path):
    whole, apart = stand_in_pipeline("SH"), stand_in_pipeline("SH")
    apart.enable_group_offload("cpu")
    expected = list(whole.stream(PROMPTS[0], seed=3, num_frames=33))
    for first, second in ((whole, apart), (apart, whole)):
        stream = first.stream(PROMPTS[0], seed=3, num_frames=33)
        begin = next(stream).video
        stream.save(tmp_path / "run.arl2")
        rest = [block.video for block in second.resume(tmp_path / "run.arl2")]
        assert all(torch.equal(ours, theirs.video) for ours, theirs in zip([begin, *rest], expected, strict=True))


def test_a_saved_pipeline_is_offloaded_on_request(tmp_path: Path):
    folder = stand_in_folder(tmp_path / "model")
    pipe = ARL2Pipeline.from_pretrained(folder)
    expected = pipe(PROMPTS[0], num_frames=21, seed=1, output_type="pt").frames
    pipe.enable_group_offload("cpu")
    assert torch.equal(pipe(PROMPTS[0], num_frames=21, seed=1, output_type="pt").frames, expected)
    pipe.save_pretrained(tmp_path / "again")
    again = ARL2Pipeline.from_pretrained(tmp_path / "again")
    assert torch.equal(again(PROMPTS[0], num_frames=21, seed=1, output_type="pt").frames, expected)


# What is refused.


@pytest.mark.parametrize("name", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_other_ways_of_offloading_name_the_one_there_is(name):
    with pytest.raises(ConfigError, match=r"Use pipe\.enable_group_offload\('cuda'\)"):
        getattr(stand_in_pipeline(), name)()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"offload_type": "leaf_level"},
            r"offload_type 'leaf_level'; .* so offload_type is 'block_level'\. Leave",
        ),
        ({"num_blocks_per_group": 4}, r"num_blocks_per_group is 1 or None"),
        ({"use_stream": False}, "use_stream is True"),
        ({"use_stream": 1}, "use_stream is True"),
        ({"offload_to_disk_path": "x"}, "offload_to_disk_path is None"),
        ({"exclude_modules": "text"}, "exclude_modules is None"),
    ],
)
def test_options_of_diffusers_that_ask_for_something_else(options, said):
    pipe = stand_in_pipeline()
    with pytest.raises(ConfigError, match=said):
        pipe.enable_group_offload("cpu", **options)
    assert not pipe.transformer.layers.is_offloaded


def test_offloading_that_cannot_be():
    pipe = stand_in_pipeline()
    with pytest.raises(TypeError, match="Unknown argument 'stream'"):
        pipe.enable_group_offload("cpu", stream=True)
    with pytest.raises(ConfigError, match="Device 'cuda:77' cannot be used here"):
        pipe.enable_group_offload("cuda:77")
    pipe.enable_group_offload(torch.device("cpu"), offload_device=torch.device("cpu"), non_blocking=True)
    with pytest.raises(ConfigError, match="already"):
        pipe.enable_group_offload("cpu")
    with pytest.raises(ConfigError, match="cannot be moved or cast"):
        pipe.to(torch.float64)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_without_memory_of_its_own(device):
    with pytest.raises(ConfigError, match=f"^Layers are offloaded .* device {device} has none of its own; leave offl"):
        load_components(ModelSource(model="shapes", offload="layers"), device=device)
    assert not open_pipeline(ModelSource(model="shapes", device="cpu")).transformer.layers.is_offloaded


# Where a source's parts go.


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Where components would have been moved to."""
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(assemble, "place", lambda _, device, **how: kept.append({"device": device, **how}))
    return kept


def test_a_saved_pipeline_of_an_unknown_codec_goes_where_it_is_told(tmp_path: Path, gone):
    source = ModelSource(model=str(stand_in_folder(tmp_path / "model")))
    for offload, expected in (("auto", False), ("none", False), ("layers", True)):
        load_components(replace(source, offload=offload), SamplingOptions(), device="cuda:1")
        assert gone.pop() == {"device": "cuda:1", "offload": expected, "text_on_device": True}


def test_fused_projections_are_three_again_where_layers_are_offloaded(alone):
    pipe = stand_in_pipeline("SHH")
    pipe.transformer.fuse_qkv_projections()
    pipe.enable_group_offload("cpu")
    assert same(list(steps(begun(pipe, 0))), alone[0])


def test_layers_of_several_ranks_are_not_offloaded():
    with pytest.raises(ConfigError, match="several ranks share are not offloaded; use offload 'none'"):
        load_components(ModelSource(model="shapes-75", offload="layers"), ranks=2)
