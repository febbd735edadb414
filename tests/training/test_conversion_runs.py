"""Runs of both stages in small: resumed is uninterrupted; what breaks. The whole chain is in test_chain.py."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.training.conversion import align_config, clips_folder, distill_config, loop, task_of, teacher_folder
from tests.training.toy import ToyTask

from arl2.cli.main import main
from arl2.errors import CheckpointError, ConfigError, NonFiniteError
from arl2.files.records import record_to_mapping
from arl2.training.conversion.align import AlignConfig
from arl2.training.conversion.distill import DistillConfig
from arl2.training.engine.loop import RunResult, train
from arl2.training.engine.processes import Processes
from arl2.training.engine.task import Batch, Loss, Task

STAGES = {"align": align_config, "distill": distill_config}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def run(config: AlignConfig | DistillConfig, folder: Path, task: Task | None = None, **options: object) -> RunResult:
    return train(
        task or task_of(config),
        config.loop,
        folder,
        run_config=record_to_mapping(config),
        console=Console(quiet=True),
        **options,
    )


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, RunResult]:
    return {stage: run(make(folder), folder / f"whole-{stage}") for stage, make in STAGES.items()}


class Killed(BaseException):
    """As abrupt as a kill: the loop does not catch it."""


def killed_at(task: Task, step: int, slot: int) -> Task:
    loss = task.loss

    def kill(batch: Batch) -> Loss:
        if (batch.step, batch.slot) == (step, slot):
            raise Killed
        return loss(batch)

    task.loss = kill
    return task


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed_is_never_killed(stage, folder, whole):
    config = STAGES[stage](folder)
    with pytest.raises(Killed):
        run(config, folder / f"cut-{stage}", killed_at(task_of(config), 3, 1))
    resumed = run(config, folder / f"cut-{stage}")
    expected, got = (load_file(one.checkpoint / "state.safetensors") for one in (whole[stage], resumed))
    assert expected.keys() == got.keys()
    assert ("task/level_means" in expected) == (stage == "distill")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert resumed.scores == whole[stage].scores


def test_another_config_is_refused_and_what_differs_is_said(folder, whole):
    config = distill_config(folder, on_policy_share=0.25, state_rank=4)
    with pytest.raises(ConfigError, match=r"on_policy_share: 0\.5 -> 0\.25; state_rank: 2 -> 4"):
        run(config, whole["distill"].export.parent)
    with pytest.raises(CheckpointError, match=r"does not fit what trains now.*changes\.k\.A"):
        run(config, whole["distill"].export.parent, accept_changes=True)


def test_a_loss_that_is_not_finite_names_step_layer_and_checkpoint(folder, tmp_path):
    config = align_config(folder, loop=loop(steps=4))
    task = task_of(config)
    loss = task.loss

    def spoil(batch):
        if batch.step == 3:
            with torch.no_grad():
                task.student.layers[1].self_attention.state.phi_v[0, 0, 0] = float("nan")
        return loss(batch)

    task.loss = spoil
    with pytest.raises(NonFiniteError, match=r"loss is nan at step 3.*'layers\.1\..*step-000000002"):
        run(config, tmp_path, task)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: what a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_at_a_checkpoint_leaves_the_last_one_whole(folder, whole, tmp_path):
    config = align_config(folder)
    task = killed_at(task_of(config), 1, 0)
    with pytest.raises(Killed):
        run(replace(config, loop=replace(config.loop, checkpoint_every=1)), tmp_path, task)
    with (
        files_up_to(2000),
        pytest.raises(CheckpointError, match=r"step-000000002' could not be written.*step-000000001"),
    ):
        run(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001"]
    resumed = run(config, tmp_path)
    expected, got = (load_file(one.checkpoint / "state.safetensors") for one in (whole["align"], resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_pictures_are_asked_of_tasks_that_draw(tmp_path):
    config = loop(pictures_every=1)
    with pytest.raises(ConfigError, match="makes no contact sheets"):
        train(ToyTask(), config, tmp_path, run_config={}, console=Console(quiet=True))
    with pytest.raises(ConfigError, match="pictures_every is 0"):
        loop(pictures_every=0)


def test_the_command_trains_both_stages_and_ranks_layers(tmp_path, capsys):
    teacher, clips = teacher_folder(tmp_path / "teacher"), clips_folder(tmp_path / "clips")
    shared = [f"teacher={teacher}", f'clips=["{clips}"]', "frames=[9]", "batch_frames=9", "held_out=2", "loop.steps=2"]
    small = [*shared, "picture_frames=6", "picture_clips=1", "loop.log_every=1"]
    aligned = tmp_path / "align"
    words = ["train", "align", str(aligned), *small]

    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert '"weight_decay": 0.01' in said
    assert "plan HH, trained in stage 1" in said
    assert "TFLOP" in said
    assert not aligned.exists()
    assert main(words) == 0
    assert "finished after 2 steps" in capsys.readouterr().out

    out, plot = tmp_path / "ranking.json", tmp_path / "bars.png"
    measure = ["sensitivity", str(teacher), "--aligned", str(aligned / "export"), "-o", str(out)]
    measure += ["--latent-frames", "6", "--overwrite"]
    assert main([*measure, "--clips", str(clips), "--limit", "2", "--plot", str(plot), "--count", "1"]) == 0
    found = json.loads(out.read_text())
    assert sorted(found["ranking"]) == [0, 1]
    assert found["suggested"] == found["plans"]["1"]
    assert found["plans"]["2"] == "HH"
    assert plot.stat().st_size > 500
    assert "least sensitive first" in capsys.readouterr().out
    assert main([*measure, "--clips", str(clips), "--limit", "1", "--keep", "0,1", "--count", "1"]) == 2
    assert "without those to keep, 0" in capsys.readouterr().err

    student = ["train", "distill", str(tmp_path / "distill"), *small, f"aligned={aligned / 'export'}"]
    assert main([*student, f"plan={found['suggested']}", "evaluation_rollouts=1", "state_rank=2", "ffn_rank=2"]) == 0

    shard = clips / "shards" / "00001.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert main(["train", "align", str(tmp_path / "other"), *small]) == 2
    assert "00001.arrow" in capsys.readouterr().err
    shard.unlink()
    assert main(["train", "align", str(tmp_path / "other"), *small]) == 2
    assert "00001.arrow has 0 of" in capsys.readouterr().err
    assert main(["train", "align", str(tmp_path / "other"), "loop.steps=1", "palns=3"]) == 2
    assert "Unknown setting 'palns'. Did you mean 'plan'?" in capsys.readouterr().err
    assert main(["train", "distill", str(tmp_path / "other"), "loop.steps=1", f"teacher={teacher}"]) == 2
    assert "There are no clips" in capsys.readouterr().err


def test_processes_alone_have_nobody_to_lose():
    tensor = torch.ones(2)
    Processes().sum_tensor(tensor)
    assert tensor.tolist() == [1.0, 1.0]
