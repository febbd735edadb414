"""The training loop, for every task, on one process or several."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import nn

from arl2.errors import ConfigError, NonFiniteError
from arl2.files.atomic import remove_all_stale, write_atomically
from arl2.interrupt import StopSignal
from arl2.model.settings import seed_number, whole
from arl2.training.engine.checkpoint import (
    RunState,
    checkpoint_name,
    checkpoint_tensors,
    checkpoints_in,
    load_checkpoint,
    read_state,
    save_checkpoint,
    this_run_alone,
)
from arl2.training.engine.config import accepted_changes, check_number
from arl2.training.engine.ema import WeightAverage
from arl2.training.engine.optimizer import (
    OptimizerName,
    Optimizers,
    gradient_norm,
    learning_rate_factor,
    what_is_not_finite,
)
from arl2.training.engine.processes import Processes
from arl2.training.engine.progress import Progress, Reporter
from arl2.training.engine.task import Batch, Compute, KeepsState, ParameterGroup, Scales, Sharding, ShowsSamples, Task

Reason = Literal["finished", "time is up", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of the loop. The run's length is ``steps``, or ``max_minutes`` of training when ``steps`` is None.

    Attributes:
        seed: random seed of every batch.
        steps: length in optimizer steps; the learning rate then follows steps, and a run that is killed and resumed
            gives the same bits as one that was not.
        max_minutes: with ``steps``: minutes after which this call stops, to be resumed. Without: the length of the
            whole run, resumed parts included; the learning rate then follows the clock.
        learning_rate: its peak, after the warm-up; it falls along a cosine.
        final_learning_rate: learning rate at the end, as a share of the peak.
        warmup_steps: steps over which the learning rate grows linearly.
        optimizer: "adamw", or "muon" for matrices between hidden layers and AdamW for the rest.
        adam_betas: decay rates of AdamW's moments.
        sharding: "none": every process holds all weights; "full": each holds a part of every weight, gradient and
            moment, and layers are gathered when they run (FSDP). The results are the same.
        compute: dtype of frozen weights and of computation; what trains stays float32.
        batches_per_step: batches whose gradients are averaged in a step, divided among all processes.
        gradient_clip: largest norm of all gradients together.
        average_decay: decay of the running average of the weights (EMA) that is evaluated and exported.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between evaluations and exports.
        log_every: steps between log lines.
        evaluate_first: also evaluate before the first step.
        pictures_every: steps between contact sheets in ``pictures/`` (and one at the end); null: none.
        keep_checkpoints: number of the newest checkpoints to keep.
        tensorboard: also write a TensorBoard log.
    """

    seed: int = 0
    steps: int | None = None
    max_minutes: float | None = None
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.01
    warmup_steps: int = 100
    optimizer: OptimizerName = "adamw"
    adam_betas: tuple[float, float] = (0.9, 0.99)
    sharding: Sharding = "none"
    compute: Compute = "float32"
    batches_per_step: int = 1
    gradient_clip: float = 1.0
    average_decay: float = 0.999
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    evaluate_every: int = 1000
    evaluate_first: bool = False
    pictures_every: int | None = None
    log_every: int = 20
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.steps is None and self.max_minutes is None:
            raise ConfigError("A run needs a length: give steps or max_minutes.")
        seed_number(self.seed, name="loop.seed")
        counts = ("batches_per_step", "checkpoint_every", "keep_checkpoints", "evaluate_every", "log_every")
        for name in (*counts, "steps", "pictures_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"loop.{name} is {value}; give 1 or more.")
            if value is not None:
                whole(f"loop.{name}", value)
        for name in ("max_minutes", "warmup_steps", "final_learning_rate"):
            if (value := getattr(self, name)) is not None:
                check_number(f"loop.{name}", value, least=0)
        for name in ("learning_rate", "gradient_clip"):
            check_number(f"loop.{name}", getattr(self, name), above=0)
        for name, share in (("average_decay", self.average_decay), *(("adam_betas", beta) for beta in self.adam_betas)):
            check_number(f"loop.{name}", share, least=0, below=1)


@dataclass(frozen=True)
class RunResult:
    """How a call of ``train`` ended."""

    reason: Reason
    step: int
    minutes: float
    scores: Mapping[str, float]
    checkpoint: Path
    export: Path


def train(
    task: Task,
    config: LoopConfig,
    folder: Path,
    *,
    run_config: Mapping[str, Any],
    accept_changes: bool = False,
    processes: Processes | None = None,
    console: Console | None = None,
) -> RunResult:
    """Train until the run's length, the time limit or Ctrl-C; a run that ``folder`` holds is resumed.

    Args:
        task: what trains.
        config: settings of the loop.
        folder: of the run: ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``export/``, ``pictures/``.
        run_config: every setting of the run, plain; kept beside the run and compared when it is resumed.
        accept_changes: resume even though settings that matter differ.
        processes: from ``joined_processes()``; None: this one alone.
        console: where progress goes; None: standard error of the first process.

    Raises:
        ConfigError: when the run in ``folder`` was made with other settings: the message lists them.
        NonFiniteError: when the loss or a gradient is NaN or infinite; nothing is saved after that.
        CheckpointError: when the newest checkpoint does not fit or cannot be read, or a new one cannot be written.
        ProcessLostError: when another process of the run has ended.
    """
    processes = processes or Processes()
    if config.batches_per_step % processes.count:
        raise ConfigError(
            f"batches_per_step = {config.batches_per_step} cannot be divided evenly among {processes.count} "
            "processes; make it a multiple."
        )
    sharded = config.sharding == "full" and processes.count > 1
    if config.sharding == "full" or config.compute != "float32":
        if not isinstance(task, Scales):
            raise ConfigError("This task trains unsharded and in float32; leave loop.sharding and loop.compute out.")
        if sharded:
            task.shard(processes)
    console = console or Console(stderr=True, quiet=not processes.is_first)
    run = _Run(task, config, folder, dict(run_config), processes, console, sharded=sharded)
    with this_run_alone(folder) if processes.is_first else nullcontext():
        run.resume(accept_changes)
        reporter = Reporter(
            folder if processes.is_first else None,
            console=console,
            from_step=run.step,
            tensorboard=config.tensorboard,
        )
        with reporter, StopSignal() as stop:
            return run.until_done(reporter, stop)


class _Run:
    """A run in progress: what is saved in a checkpoint, plus the clock and the sums since the last log line."""

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        folder: Path,
        run_config: dict[str, Any],
        processes: Processes,
        console: Console,
        *,
        sharded: bool,
    ) -> None:
        self.task, self.config, self.folder, self.processes = task, config, folder, processes
        self.run_config, self.console, self.sharded = run_config, console, sharded
        groups = list(task.parameter_groups())
        self.parameters = _by_name(groups)
        self.task_state = task.state_tensors() if isinstance(task, KeepsState) else {}
        if config.pictures_every is not None and not isinstance(task, ShowsSamples):
            raise ConfigError("This task makes no contact sheets; leave loop.pictures_every out.")
        self.optimizer = Optimizers(
            groups, name=config.optimizer, learning_rate=config.learning_rate, adam_betas=config.adam_betas
        )
        self.average = WeightAverage(self.parameters, config.average_decay)
        self.step = 0
        self.minutes_before = 0.0
        self.started = time.monotonic()
        self.last_checkpoint: Path | None = None
        self.scores: dict[str, float] | None = None
        self.window = _Window(0, self.started)
        self.done_before = 0.0
        self.agreed_minutes = 0.0

    @property
    def minutes(self) -> float:
        """Minutes of training, earlier parts of the run included."""
        return self.minutes_before + (time.monotonic() - self.started) / 60

    @property
    def done(self) -> float:
        """Share of the run that is over, 0 to 1."""
        if self.config.steps is not None:
            return self.step / max(self.config.steps, 1)
        return self.agreed_minutes / max(self.config.max_minutes or 0.0, 1e-9)

    def resume(self, accept_changes: bool) -> None:
        """Load the newest checkpoint of the folder, if there is one."""
        saved = checkpoints_in(self.folder / "checkpoints")
        if saved:
            before = read_state(saved[-1]).config
            for line in accepted_changes(before, self.run_config, self.folder, accept_all=accept_changes):
                self.console.print(f"Changed since the run began: {line}", markup=False, highlight=False)
            state = load_checkpoint(
                saved[-1],
                parameters=self.parameters,
                average=self.average,
                optimizer=self.optimizer,
                task_state=self.task_state,
            )
            self.step, self.minutes_before, self.last_checkpoint = state.step, state.minutes, saved[-1]
            self.window = _Window(state.logged_step, self.started)
            self.window.sums = {name: torch.tensor(value) for name, value in state.unlogged.items()}
        self.agreed_minutes = self.minutes_before
        self.done_before = self.done
        if self.processes.is_first:
            write_atomically(self.folder / "config.json", (json.dumps(self.run_config, indent=1) + "\n").encode())
            for left in (self.folder, self.folder / "checkpoints"):
                remove_all_stale(left)
        self.processes.wait()

    def until_done(self, reporter: Reporter, stop: StopSignal) -> RunResult:
        """Steps until the end; then a last checkpoint, evaluation and export."""
        if self.step:
            reporter.say(f"Resuming from step {self.step} ({self.minutes_before:.1f} minutes of training).")
        elif self.config.evaluate_first:
            self._evaluate(export=False)
            reporter.show(self._progress())
        while (reason := self._reason_to_stop(stop)) is None:
            self._one_step()
            self.scores = None
            if self.step % self.config.evaluate_every == 0:
                self._evaluate()
            if self.scores or self.step % self.config.log_every == 0:
                reporter.show(self._progress())
            if self.step % self.config.checkpoint_every == 0:
                self._save()
            if self.config.pictures_every is not None and self.step % self.config.pictures_every == 0:
                self._show()
        self._save()
        if self.config.pictures_every is not None:
            self._show()
        if self.scores is None:
            self._evaluate()
            reporter.show(self._progress())
        reporter.say(f"Stopped at step {self.step}: {reason}.")
        checkpoint = self.folder / "checkpoints" / checkpoint_name(self.step)
        return RunResult(reason, self.step, self.minutes, self.scores or {}, checkpoint, self.folder / "export")

    def _reason_to_stop(self, stop: StopSignal) -> Reason | None:
        """Agreed between processes, whose clocks and signals differ."""
        here, total, asked = self.minutes - self.minutes_before, self.minutes, float(stop.asked)
        here, total, asked = self.processes.largest(here, total, asked)
        self.agreed_minutes = total
        limit = self.config.max_minutes
        if self.config.steps is not None and self.step >= self.config.steps:
            return "finished"
        if self.config.steps is None and limit is not None and total >= limit:
            return "finished"
        if asked:
            return "interrupted"
        if limit is not None and here >= limit:
            return "time is up"
        return None

    def _one_step(self) -> None:
        config = self.config
        factor = learning_rate_factor(
            self.step, self.done, warmup_steps=config.warmup_steps, final=config.final_learning_rate
        )
        self.optimizer.set_learning_rate(config.learning_rate * factor)
        self.optimizer.zero_grad()
        share = 1 / config.batches_per_step
        # Gradients of shards arrive as the mean over processes, and are to be the sum.
        scale = share * self.processes.count if self.sharded else share
        total, window = 0.0, self.window
        for slot in range(self.processes.rank, config.batches_per_step, self.processes.count):
            loss = self.task.loss(Batch.keyed(config.seed, self.step, slot, config.batches_per_step))
            (loss.value * scale).backward()
            total += loss.value.item() * share
            window.samples += loss.samples * self.processes.count
            # The loss is summed over processes; the other logs stay those of this process, free of communication.
            for name, value in loss.logs.items():
                window.add(name, value.detach() * share * self.processes.count)
        if not self.sharded:
            self.processes.sum_gradients(self.parameters.values())
        (total,) = self.processes.sum(total)
        # The norm first: clipping by one that is not finite would spoil every gradient, and hide where it began.
        norm = gradient_norm(self.parameters.values())
        self._check_finite(total, norm.item())
        nn.utils.clip_grads_with_norm_(self.parameters.values(), config.gradient_clip, norm)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        if isinstance(self.task, KeepsState):
            self.task.end_step(self.processes)
        window.add("loss", torch.tensor(total))
        window.add("gradient_norm", norm)

    def _check_finite(self, loss: float, norm: float) -> None:
        what = what_is_not_finite(loss, norm, self.step, self.parameters)
        if what is not None:
            good = f"the last good checkpoint is '{self.last_checkpoint}'" if self.last_checkpoint else "none was saved"
            raise NonFiniteError(f"The {what}; {good}: resume it with a lower learning rate.")

    def _save(self) -> None:
        folder, name = self.folder / "checkpoints", checkpoint_name(self.step)
        if self.last_checkpoint is None or self.last_checkpoint.name != name:
            if self.processes.is_first or self.sharded:
                tensors = checkpoint_tensors(self.parameters, self.average, self.optimizer, self.task_state)
                if self.processes.is_first:
                    save_checkpoint(folder, self._state(), tensors, keep=self.config.keep_checkpoints)
            self.last_checkpoint = folder / name
        self.processes.wait()

    def _state(self) -> RunState:
        unlogged = {name: value.item() for name, value in self.window.sums.items()}
        return RunState(self.step, self.minutes, self.run_config, self.window.step, unlogged)

    def _evaluate(self, *, export: bool = True) -> None:
        """Scores and export of the averaged weights; the other processes wait."""
        self.scores = {}
        with self._averaged() as here:
            if here:
                self.scores = dict(self.task.evaluate())
                if export:
                    self.task.export(self.folder / "export")
        self.processes.wait()

    @contextmanager
    def _averaged(self) -> Iterator[bool]:
        """Within: the averaged weights, in full on the first process. All enter; yields whether this is the first."""
        here = self.processes.is_first
        gathered = (
            self.task.full_weights(here=here) if self.sharded and isinstance(self.task, Scales) else nullcontext()
        )
        with self.average.applied() if here or self.sharded else nullcontext(), gathered:
            yield here

    def _show(self) -> None:
        """A contact sheet of this step, if there is none yet; the other processes wait."""
        path = self.folder / "pictures" / f"{checkpoint_name(self.step)}.png"
        if self.processes.any(self.processes.is_first and not path.exists()):
            with self._averaged() as here:
                if here and isinstance(self.task, ShowsSamples):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self.task.contact_sheet(path)
        self.processes.wait()

    def _progress(self) -> Progress:
        """What happened since the last log line; a new window begins."""
        now, done, window = time.monotonic(), self.done, self.window
        share_a_second = (done - self.done_before) / max(now - self.started, 1e-9)
        self.window = _Window(self.step, now)
        return Progress(
            step=self.step,
            minutes=self.minutes,
            learning_rate=self.optimizer.learning_rate,
            samples_per_second=window.samples / max(now - window.since, 1e-9),
            seconds_left=(1 - done) / share_a_second if share_a_second > 0 else None,
            logs={name: value.item() / max(self.step - window.step, 1) for name, value in window.sums.items()},
            scores=self.scores or {},
        )


@dataclass
class _Window:
    """Sums between two log lines; values stay on their device until they are read."""

    step: int
    since: float
    samples: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add to the sum of that name."""
        self.sums[name] = self.sums[name] + value if name in self.sums else value


def _by_name(groups: Sequence[ParameterGroup]) -> dict[str, nn.Parameter]:
    """All parameters that train, by name; raises ``ConfigError`` when there is none or a name comes twice."""
    parameters: dict[str, nn.Parameter] = {}
    for group in groups:
        for name, parameter in group.parameters.items():
            if name in parameters:
                raise ConfigError(f"The task names two parameters '{name}'; every name must be unique.")
            parameters[name] = parameter
    if not parameters:
        raise ConfigError("Nothing trains: the task has no parameters; unfreeze some.")
    return parameters
