"""Weights in shards change where things lie, and nothing else; a run goes on sharded or not, on one process or two."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.training.conversion import distill_config, loop, task_of, teacher_folder
from tests.training.sharded import STEPS, a_config
from tests.training.toy import ToyTask

from arl2.errors import ConfigError
from arl2.files.records import record_to_mapping
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.processes import Processes
from arl2.training.engine.progress import read_metrics
from forked import program

QUIET = Console(quiet=True)
STAGES = ("align", "distill")
WEIGHTS = "export/transformer/diffusion_pytorch_model.safetensors"
STATE = f"checkpoints/step-{STEPS:09d}/state.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of two processes, and of one, in one folder."""
    folder = tmp_path_factory.mktemp("sharded")
    teacher_folder(folder / "teacher")
    done = program("tests.training.sharded", str(folder))
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        alone(a_config(folder, stage), folder / f"{stage}-one")
    return folder


def alone(config, folder):
    return train(task_of(config), config.loop, folder, run_config=record_to_mapping(config), console=QUIET)


def losses(folder):
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]


def scores(folder):
    return {name: value for name, value in read_metrics(folder / "metrics.jsonl")[-1].items() if "held_out" in name}


def notes(folder, rank):
    return json.loads((folder / f"notes-{rank}.json").read_text())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("other", ["full", "none", "cut"])
def test_shards_give_what_one_process_gives(stage, other, place):
    one, two = place / f"{stage}-one", place / f"{stage}-{other}"
    assert len(losses(one)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert scores(two) == pytest.approx(scores(one), rel=1e-5)
    expected, got = load_file(one / WEIGHTS), load_file(two / WEIGHTS)
    assert expected.keys() == got.keys()
    for name, x in expected.items():
        torch.testing.assert_close(got[name], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_each_process_holds_half(stage, place):
    for rank in (0, 1):
        assert notes(place, rank)[f"{stage}-full"]["share"] == pytest.approx(0.5, abs=0.02)
        assert notes(place, rank)[f"{stage}-none"]["share"] == 1


def test_processes_roll_out_in_the_same_steps(place):
    """Some steps, not all; nobody waits for another's rollout with nothing to do."""
    first, second = (notes(place, rank)["distill-full"]["rolled_at"] for rank in (0, 1))
    assert first == second
    assert 0 < len(set(first)) < STEPS


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed_is_never_killed_with_activations_kept_or_not(stage, place):
    expected, got = (load_file(place / f"{stage}-{run}" / STATE) for run in ("full", "cut"))
    assert expected.keys() == got.keys()
    assert any(name.startswith("optimizer/exp_avg/") for name in expected)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert scores(place / f"{stage}-cut") == scores(place / f"{stage}-full")
    records = [x for x in read_metrics(place / f"{stage}-cut" / "metrics.jsonl") if "loss" in x]
    assert [x["step"] for x in records] == [*range(1, STEPS + 1)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_begun_in_shards_goes_on_alone(stage, place, tmp_path):
    shutil.copytree(place / f"{stage}-full", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS:09d}")
    # These may change without being asked about: the processes, sharding and what is computed again.
    alone(a_config(place, stage), tmp_path / "run")
    assert losses(tmp_path / "run")[-2:] == pytest.approx(losses(place / f"{stage}-full")[-2:], rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_shards_in_half_precision(stage, place):
    assert losses(place / f"{stage}-half") == pytest.approx(losses(place / f"{stage}-one")[:2], rel=2e-2)
    assert notes(place, 0)[f"{stage}-half"]["trained"] == ["torch.float32"]
    # Frozen weights leave as they came, whatever they were rounded to in between.
    teacher = load_file(place / "teacher" / WEIGHTS.removeprefix("export/"))
    got = {name.replace(".linear.", "."): x for name, x in load_file(place / f"{stage}-half" / WEIGHTS).items()}
    assert all(torch.equal(got[name], x) for name, x in teacher.items())


def test_clips_of_one_block_are_refused(place):
    task = task_of(distill_config(place, frames=(3, 9), on_policy_known=(0,)))
    with pytest.raises(ConfigError, match=r"3 latent frames is one block.*two blocks or more"):
        task.shard(Processes())


def test_tasks_that_do_not_scale_say_so(tmp_path):
    for setting in ({"sharding": "full"}, {"compute": "bfloat16"}):
        with pytest.raises(ConfigError, match=r"unsharded and in float32; leave loop\.sharding and loop\.compute out"):
            train(ToyTask(), loop(**setting), tmp_path, run_config={}, console=QUIET)


def test_runs_older_than_the_settings_go_on(tmp_path):
    config = LoopConfig(steps=2)
    now = {"loop": record_to_mapping(config)}
    before = {"loop": {name: x for name, x in now["loop"].items() if name not in ("sharding", "compute")}}
    train(ToyTask(), config, tmp_path, run_config=before, console=QUIET)
    assert train(ToyTask(), config, tmp_path, run_config=now, console=QUIET).step == 2
    half = {"loop": record_to_mapping(replace(config, compute="bfloat16"))}
    with pytest.raises(ConfigError, match=r'loop\.compute: "float32" -> "bfloat16"'):
        train(ToyTask(), config, tmp_path, run_config=half, console=QUIET)
