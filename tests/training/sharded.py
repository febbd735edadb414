"""What each of two processes does for ``test_sharding``: many short runs, one after the other, and notes on them.

python -m tests.training.sharded FOLDER     (FOLDER/teacher holds the teacher)
"""

import functools
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from tests.training.conversion import align_config, distill_config, loop, task_of
from torch.distributed.tensor import DTensor

from arl2.files.records import record_to_mapping
from arl2.training.conversion.align import AlignConfig
from arl2.training.conversion.distill import DistillConfig
from arl2.training.engine.loop import train
from arl2.training.engine.processes import Processes, joined_processes
from arl2.training.engine.task import Batch, Loss
from forked import forked_ranks

STEPS = 4


class Killed(BaseException):
    """As abrupt as a kill: the loop does not catch it."""


def a_config(folder: Path, stage: str, **changes: object) -> AlignConfig | DistillConfig:
    """A short run of a stage; ``changes`` are of its loop, but for ``activation_checkpointing``."""
    checkpointing = bool(changes.pop("activation_checkpointing", False))
    length = loop(**{"steps": STEPS, **changes})
    if stage == "align":
        return align_config(folder, loop=length, activation_checkpointing=checkpointing)
    options = {"hidden_weight": 0.1, "memory_weight": 0.5, "student_window": 3}
    return distill_config(folder, loop=length, activation_checkpointing=checkpointing, **options)


def run(config: AlignConfig | DistillConfig, folder: Path, processes: Processes, *, kill_at: int | None = None) -> dict:
    """Train; how many of the numbers of all weights this process holds, what it rolled out, and what is sharded."""
    task = task_of(config)
    loss, rolled_at, step = task.loss, [], 0

    def watched(batch: Batch) -> Loss:
        nonlocal step
        step = batch.step
        if step == kill_at:
            raise Killed
        return loss(batch)

    task.loss = watched
    if isinstance(config, DistillConfig):
        roll_out = task._rolled_out
        task._rolled_out = lambda *given: rolled_at.append(step) or roll_out(*given)
    train(task, config.loop, folder, run_config=record_to_mapping(config), processes=processes, console=QUIET)
    weights = [*task.student.parameters(), *task.teacher.model.parameters()]
    mine = sum((x.to_local() if isinstance(x, DTensor) else x).numel() for x in weights)
    kinds = {name: str(p.dtype) for name, p in task.trained.items()}
    return {
        "share": mine / sum(x.numel() for x in weights),
        "rolled_at": rolled_at,
        "trained": sorted(set(kinds.values())),
    }


QUIET = Console(quiet=True)


def all_runs(place: Path) -> None:
    """Every kind of run of both stages, and notes on each."""
    notes = {}
    with joined_processes() as together:
        for stage in ("align", "distill"):
            for sharding in ("full", "none"):
                # With shards, activations are computed again; the run that is killed keeps them.
                config = a_config(place, stage, sharding=sharding, activation_checkpointing=sharding == "full")
                notes[f"{stage}-{sharding}"] = run(config, place / f"{stage}-{sharding}", together)
            half = a_config(place, stage, sharding="full", compute="bfloat16", steps=2)
            notes[f"{stage}-half"] = run(half, place / f"{stage}-half", together)
            cut = a_config(place, stage, sharding="full")
            try:
                run(cut, place / f"{stage}-cut", together, kill_at=3)
            except Killed:
                run(replace(cut), place / f"{stage}-cut", together)
        (place / f"notes-{together.rank}.json").write_text(json.dumps(notes))


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    sys.exit(any(forked_ranks(2, functools.partial(all_runs, Path(sys.argv[1])))))
