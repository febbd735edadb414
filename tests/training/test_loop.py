"""The loop: killed and resumed is never killed, to the bit; it stops when it should and says why."""

import io
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.training.toy import ToyTask

from arl2.errors import CheckpointError, ConfigError, NonFiniteError
from arl2.files.records import record_to_mapping
from arl2.training.engine.checkpoint import checkpoints_in
from arl2.training.engine.loop import LoopConfig, RunResult, train
from arl2.training.engine.optimizer import OptimizerName
from arl2.training.engine.progress import read_metrics
from arl2.training.engine.task import Batch
from forked import program

CONFIG = LoopConfig(steps=30, warmup_steps=5, checkpoint_every=7, evaluate_every=10, log_every=5, batches_per_step=2)


def run(task: ToyTask, folder: Path, config: LoopConfig = CONFIG, **options: Any) -> RunResult:
    console = options.pop("console", Console(quiet=True))
    return train(task, config, folder, run_config={"loop": record_to_mapping(config)}, console=console, **options)


def state_of(result: RunResult) -> dict[str, torch.Tensor]:
    return load_file(result.checkpoint / "state.safetensors")


def comparable(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clock = ("minutes", "samples_per_second")
    return [{name: value for name, value in record.items() if name not in clock} for record in records]


class Killed(BaseException):
    """As abrupt as a kill: the loop does not catch it."""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("at", [(3, 0), (8, 1), (14, 0), (29, 1)])
def test_killed_and_resumed_is_never_killed(tmp_path: Path, at: tuple[int, int], optimizer: OptimizerName) -> None:
    config = replace(CONFIG, optimizer=optimizer)

    def kill(batch: Batch) -> None:
        if (batch.step, batch.slot) == at:
            raise Killed

    whole = run(ToyTask(), tmp_path / "whole", config)
    with pytest.raises(Killed):
        run(ToyTask(before_loss=kill), tmp_path / "cut", config)
    resumed = run(ToyTask(), tmp_path / "cut", config)
    assert resumed.reason == whole.reason == "finished"
    assert resumed.step == whole.step == 30
    expected, got = state_of(whole), state_of(resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert resumed.scores == whole.scores
    whole_metrics, cut_metrics = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert comparable(cut_metrics) == comparable(whole_metrics)


def test_it_learns_and_the_average_is_what_is_exported(tmp_path: Path) -> None:
    task = ToyTask()
    result = run(task, tmp_path, replace(CONFIG, steps=200, learning_rate=1e-2, average_decay=0.9))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[-1]["loss"] < 0.2 * records[0]["loss"]
    state = state_of(result)
    average = sum(x.sum().item() for name, x in state.items() if name.startswith("average/"))
    assert float((result.export / "weights.txt").read_text()) == pytest.approx(average, rel=1e-5)
    assert all(torch.equal(p, state[f"weights/{n}"]) for n, p in task.network.named_parameters())


def test_keeps_the_newest_checkpoints(tmp_path: Path) -> None:
    run(ToyTask(), tmp_path, replace(CONFIG, keep_checkpoints=3))
    assert [path.name for path in checkpoints_in(tmp_path / "checkpoints")] == [
        "step-000000021",
        "step-000000028",
        "step-000000030",
    ]


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    first = run(ToyTask(), tmp_path)
    task = ToyTask()
    again = run(task, tmp_path)
    assert again.reason == "finished"
    assert not task.losses
    assert again.scores == first.scores


def test_non_finite_loss_stops_the_run(tmp_path: Path) -> None:
    task = ToyTask()

    def spoil(batch: Batch) -> None:
        if batch.step == 16:
            task.target.fill_(float("nan"))

    task.before_loss = spoil
    with pytest.raises(NonFiniteError, match=r"nan at step 16.*'0\.weight'.*step-000000014.*lower"):
        run(task, tmp_path)
    assert checkpoints_in(tmp_path / "checkpoints")[-1].name == "step-000000014"
    assert all(
        x.isfinite().all() for x in load_file(tmp_path / "checkpoints/step-000000014/state.safetensors").values()
    )


def test_ctrl_c_stops_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    def press(batch: Batch) -> None:
        if (batch.step, batch.slot) == (11, 0):
            os.kill(os.getpid(), signal.SIGINT)

    result = run(ToyTask(before_loss=press), tmp_path)
    assert (result.reason, result.step) == ("interrupted", 12)
    assert result.checkpoint.name == "step-000000012"
    assert (result.export / "weights.txt").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest = run(ToyTask(), tmp_path)
    whole = run(ToyTask(), tmp_path.parent / "whole")
    assert all(torch.equal(x, state_of(whole)[name]) for name, x in state_of(rest).items())


def test_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def press(batch: Batch) -> None:
        if batch.step == 11:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(ToyTask(before_loss=press), tmp_path)


def test_time_limit_of_a_run_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, seconds_a_batch=3.0)
    limited = replace(CONFIG, max_minutes=1.0)
    result = run(clock.task(), tmp_path, limited)
    assert (result.reason, result.step) == ("time is up", 10)
    result = run(clock.task(), tmp_path, limited)
    assert (result.reason, result.step) == ("time is up", 20)
    result = run(clock.task(), tmp_path, replace(CONFIG, max_minutes=10.0))
    assert (result.reason, result.step) == ("finished", 30)
    assert result.minutes == pytest.approx(3.0)
    whole = run(ToyTask(), tmp_path.parent / "whole")
    assert all(torch.equal(x, state_of(whole)[name]) for name, x in state_of(result).items())


def test_time_as_the_length_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, seconds_a_batch=3.0)
    config = replace(CONFIG, steps=None, max_minutes=2.0, evaluate_every=1000, log_every=1)
    result = run(clock.task(), tmp_path, config)
    assert (result.reason, result.step) == ("finished", 20)
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert max(rates) == rates[4]
    assert rates[10] == pytest.approx(CONFIG.learning_rate * 0.505)
    assert run(clock.task(), tmp_path, config).step == 20


class FakeClock:
    """A clock that moves only when a batch is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, seconds_a_batch: float) -> None:
        self.now, self.seconds = 100.0, seconds_a_batch
        monkeypatch.setattr("arl2.training.engine.loop.time.monotonic", lambda: self.now)

    def task(self) -> ToyTask:
        return ToyTask(before_loss=self.tick)

    def tick(self, batch: Batch) -> None:
        self.now += self.seconds


def test_resuming_with_other_settings_says_what_differs(tmp_path: Path) -> None:
    run(ToyTask(), tmp_path, replace(CONFIG, steps=10))
    with pytest.raises(ConfigError, match=r"loop\.learning_rate: 0\.001 -> 0\.002.*loop\.steps: 10 -> 20"):
        run(ToyTask(), tmp_path, replace(CONFIG, steps=20, learning_rate=2e-3))
    shown = io.StringIO()
    run(ToyTask(), tmp_path, replace(CONFIG, steps=10, log_every=2), console=Console(file=shown, width=200))
    assert "Changed since the run began: loop.log_every: 5 -> 2" in shown.getvalue()
    longer = run(ToyTask(), tmp_path, replace(CONFIG, steps=20), accept_changes=True)
    assert longer.step == 20


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    result = run(ToyTask(), tmp_path)
    other = ToyTask()
    other.network.append(torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"does not fit.*'average/3\.bias'"):
        run(other, tmp_path)
    (result.checkpoint / "state.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="delete it"):
        run(ToyTask(), tmp_path)


def test_a_crash_while_saving_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(ToyTask(), tmp_path / "whole")
    saved = []

    def crash(*arguments: Any) -> None:
        saved.append(arguments)
        if len(saved) == 2:
            raise Killed

    monkeypatch.setattr("arl2.files.atomic.flush_to_disk", lambda path: crash(path) if path.is_dir() else None)
    with pytest.raises(Killed):
        run(ToyTask(), tmp_path / "cut")
    monkeypatch.undo()
    resumed = run(ToyTask(), tmp_path / "cut")
    assert all(torch.equal(x, state_of(whole)[name]) for name, x in state_of(resumed).items())
    assert not list((tmp_path / "cut" / "checkpoints").glob(".*"))


def test_plain_lines_and_the_live_line(tmp_path: Path) -> None:
    plain, live = io.StringIO(), io.StringIO()
    run(ToyTask(), tmp_path / "plain", console=Console(file=plain, width=300))
    lines = plain.getvalue().splitlines()
    assert lines[0].startswith("step 5  error ")
    assert "samples/s" in lines[0]
    assert "left" in lines[0]
    assert lines[-1] == "Stopped at step 30: finished."
    run(ToyTask(), tmp_path / "live", console=Console(file=live, width=300, force_terminal=True))
    assert "step 25" in live.getvalue()
    # Lines with scores stay; the live line is overwritten.
    assert live.getvalue().count("weight_sum") > plain.getvalue().count("weight_sum")


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="steps or max_minutes"):
        LoopConfig()
    with pytest.raises(ConfigError, match="log_every is 0"):
        LoopConfig(steps=1, log_every=0)
    with pytest.raises(ConfigError, match="average_decay"):
        LoopConfig(steps=1, average_decay=1.0)
    with pytest.raises(ConfigError, match=r"loop\.learning_rate is nan; give a number above 0"):
        LoopConfig(steps=1, learning_rate=float("nan"))
    with pytest.raises(ConfigError, match=r"loop\.steps is -1; give 1 or more"):
        LoopConfig(steps=-1)


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of two processes' runs, and what became of the processes."""
    folder = tmp_path_factory.mktemp("forked")
    return folder, program("tests.training.toy", str(folder), json.dumps(record_to_mapping(CONFIG)))


def test_two_processes_are_one_process(tmp_path: Path, forked: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    train(ToyTask(), CONFIG, tmp_path / "one", run_config={"loop": {}}, console=Console(quiet=True))
    folder, done = forked
    assert json.loads(done.stdout)["two"] == [0, 0], done.stderr
    one, two = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "one", folder / "two"))
    # Each process has half of the batches, and a mean of means is the mean but for rounding.
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], rel=1e-6)
    # Other logs are of the first process alone, but of the right size.
    assert two[0]["error"] == pytest.approx(one[0]["error"], rel=0.5)
    name = "checkpoints/step-000000030/state.safetensors"
    expected, got = load_file(tmp_path / "one" / name), load_file(folder / "two" / name)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-6, atol=1e-7)


def test_a_process_that_dies_ends_the_run_and_leaves_a_whole_checkpoint(
    tmp_path: Path, forked: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    folder, done = forked
    assert json.loads(done.stdout)["dying"] == [1, 7]
    assert "ProcessLostError: Another process of this run has ended" in done.stderr
    assert checkpoints_in(folder / "dying" / "checkpoints")[-1].name == "step-000000014"
    resumed = train(ToyTask(), CONFIG, folder / "dying", run_config={"loop": {}}, console=Console(quiet=True))
    whole = run(ToyTask(), tmp_path)
    assert resumed.step == 30
    for name, x in state_of(whole).items():
        torch.testing.assert_close(state_of(resumed)[name], x, rtol=1e-6, atol=1e-7)


def test_muon_moves_hidden_matrices_by_orthogonal_steps_and_nothing_else(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=1, warmup_steps=0, final_learning_rate=1.0, batches_per_step=1)
    start, by_adam, by_muon = ToyTask(), ToyTask(), ToyTask()
    run(by_adam, tmp_path / "adamw", config)
    run(by_muon, tmp_path / "muon", replace(config, optimizer="muon"))
    before, adam, muon = (dict(task.network.named_parameters()) for task in (start, by_adam, by_muon))
    assert all(torch.equal(muon[name], adam[name]) for name in before if name.endswith("bias"))
    step = muon["0.weight"] - before["0.weight"] * (1 - 0.1 * 2.5 * config.learning_rate)
    values = torch.linalg.svdvals(step)
    # Newton-Schulz in five rounds leaves singular values between about 0.7 and 1.2 of each other.
    assert values.min() > 0.5 * values.max() > 0
