"""Checkpoints of a run: safetensors and JSON in a folder each, written so that a crash leaves the last one whole.

A run in shards writes the same files: all processes gather what trains, and the first saves it. Few weights train, so
that takes seconds; and a run goes on with any number of processes, sharded or not, from files that hold no pickle
(``torch.distributed.checkpoint`` keeps its table of contents as one).
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arl2.errors import CheckpointError
from arl2.files.plain import first_line
from arl2.training.engine.ema import WeightAverage
from arl2.training.engine.optimizer import Optimizers
from arl2.training.engine.processes import full_tensor, part_like

_NAME = re.compile(r"step-(\d{9})")
_TENSORS, _FACTS = "state.safetensors", "run.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stands: ``step`` optimizer steps done in ``minutes`` of training, under ``config``.

    ``unlogged`` are the sums of what is logged since ``logged_step``, so that log lines too go on as if never cut.
    """

    step: int
    minutes: float
    config: Mapping[str, Any]
    logged_step: int
    unlogged: Mapping[str, float]


@torch.no_grad()
def checkpoint_tensors(
    parameters: Mapping[str, nn.Parameter],
    average: WeightAverage,
    optimizer: Optimizers,
    task_state: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """All tensors of a checkpoint, whole and on the CPU, by name; where they lie in shards, all processes must ask."""
    tensors: dict[str, Tensor] = {f"weights/{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.tensors.items()}
    tensors |= {f"task/{name}": tensor for name, tensor in task_state.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state_of(parameter).items():
            tensors[f"optimizer/{key}/{name}"] = value
    return {name: full_tensor(x).cpu().contiguous() for name, x in tensors.items()}


def save_checkpoint(folder: Path, state: RunState, tensors: Mapping[str, Tensor], *, keep: int) -> Path:
    """Write ``folder/step-NNNNNNNNN`` and delete all but the newest ``keep``.

    The files are written and flushed under a temporary name, and the folder is renamed as the last act.

    Raises:
        CheckpointError: it cannot be written (disk full, no permission); earlier checkpoints are untouched.
    """
    final = folder / checkpoint_name(state.step)
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(dict(tensors), partial / _TENSORS)
        (partial / _FACTS).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        for path in (partial / _TENSORS, partial / _FACTS, partial):
            _flush(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        size = sum(x.numel() * x.element_size() for x in tensors.values()) / 1e6
        before = checkpoints_in(folder)
        kept = f"the last whole one is '{before[-1]}'" if before else "none was saved before"
        raise CheckpointError(
            f"The checkpoint '{final}' could not be written ({first_line(error)}); it needs {size:.1f} MB: make room "
            f"and start the run again; {kept}."
        ) from error
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _flush(folder)
    for old in checkpoints_in(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` steps."""
    return f"step-{step:09d}"


def checkpoints_in(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def read_state(checkpoint: Path) -> RunState:
    """What a checkpoint says about its run; raises ``CheckpointError`` when it cannot be read."""
    try:
        facts = json.loads((checkpoint / _FACTS).read_text(encoding="utf-8"))
        return RunState(
            int(facts["step"]),
            float(facts["minutes"]),
            dict(facts["config"]),
            int(facts["logged_step"]),
            {str(name): float(value) for name, value in facts["unlogged"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The checkpoint '{checkpoint}' cannot be read ({error}); delete it to go on from the one before."
        ) from error


@torch.no_grad()
def load_checkpoint(
    checkpoint: Path,
    *,
    parameters: Mapping[str, nn.Parameter],
    average: WeightAverage,
    optimizer: Optimizers,
    task_state: Mapping[str, Tensor] | None = None,
) -> RunState:
    """Put a checkpoint back into weights, average, optimizer and what the task keeps, in place.

    Raises:
        CheckpointError: when it cannot be read, or names or shapes differ from what trains now.
    """
    state = read_state(checkpoint)
    try:
        tensors = load_file(checkpoint / _TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint '{checkpoint}' cannot be read ({error}); delete it to go on from the one before."
        ) from error
    taken = {f"weights/{name}": parameter.detach() for name, parameter in parameters.items()}
    taken |= {f"average/{name}": tensor for name, tensor in average.tensors.items()}
    taken |= {f"task/{name}": tensor for name, tensor in (task_state or {}).items()}
    held = {name: x for name, x in tensors.items() if not name.startswith("optimizer/")}
    differing = sorted(taken.keys() ^ held.keys()) or sorted(n for n in taken if taken[n].shape != held[n].shape)
    if differing:
        raise CheckpointError(
            f"The checkpoint '{checkpoint}' does not fit what trains now, first at '{differing[0]}' "
            f"({len(differing)} tensors in all); use the settings it was made with, or another run folder."
        )
    for name, target in taken.items():
        target.copy_(part_like(tensors[name], target))
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            key, _, parameter_name = rest.partition("/")
            parameter = parameters[parameter_name]
            # AdamW counts steps on the CPU wherever the parameter is.
            optimizer.state_of(parameter)[key] = tensor if key == "step" else part_like(tensor, parameter)
    return state


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
