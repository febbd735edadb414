"""Checkpoints of a run: safetensors and JSON in a folder each, written so that a crash leaves the last one intact.

A sharded run writes the same files: all processes gather what trains, and the first saves it. Few weights train, so
that takes seconds; and a run resumes with any number of processes, sharded or not, from files without pickle
(``torch.distributed.checkpoint`` pickles its table of contents).
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from arl2.errors import Arl2Error, CheckpointError, ConfigError
from arl2.files.atomic import atomic_folder, remove
from arl2.files.locks import locked_folder, writer_of
from arl2.files.plain import read_json
from arl2.files.records import record_from_mapping
from arl2.files.regular import first_line
from arl2.files.tensors import read_safetensors
from arl2.training.engine.ema import WeightAverage
from arl2.training.engine.optimizer import Optimizers
from arl2.training.engine.processes import full_tensor, part_like

_NAME = re.compile(r"step-(\d{9})")
_TENSORS, _METADATA = "state.safetensors", "run.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stands: ``step`` optimizer steps done in ``minutes`` of training, under ``config``.

    ``unlogged`` are the sums of what is logged since ``logged_step``, so that a resumed run logs the same lines.
    """

    step: int
    minutes: float
    config: Mapping[str, Any]
    logged_step: int
    unlogged: Mapping[str, float]


@contextmanager
def this_run_alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made; raises ``ConfigError`` if another run holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked_folder(folder))
        except BlockingIOError as error:
            raise ConfigError(
                f"'{folder}' is being written by another run ({writer_of(folder)}); wait for it, or give another."
            ) from error
        yield


@torch.no_grad()
def checkpoint_tensors(
    parameters: Mapping[str, nn.Parameter],
    average: WeightAverage,
    optimizer: Optimizers,
    task_state: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """All tensors of a checkpoint, gathered and on the CPU, by name; of a sharded run all processes must call it."""
    tensors: dict[str, Tensor] = {f"weights/{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.tensors.items()}
    tensors |= {f"task/{name}": tensor for name, tensor in task_state.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state_of(parameter).items():
            tensors[f"optimizer/{key}/{name}"] = value
    return {name: full_tensor(x).cpu().contiguous() for name, x in tensors.items()}


def save_checkpoint(folder: Path, state: RunState, tensors: Mapping[str, Tensor], *, keep: int) -> Path:
    """Write ``folder/step-NNNNNNNNN`` atomically and delete all but the newest ``keep``.

    Raises:
        CheckpointError: it cannot be written (disk full, no permission); earlier checkpoints are untouched.
    """
    final = folder / checkpoint_name(state.step)
    try:
        with atomic_folder(final, replace=True, flush=True) as partial:
            save_file(dict(tensors), partial / _TENSORS)
            (partial / _METADATA).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        size = sum(x.numel() * x.element_size() for x in tensors.values()) / 1e6
        before = checkpoints_in(folder)
        kept = f"the last complete one is '{before[-1]}'" if before else "none was saved before"
        raise CheckpointError(
            f"The checkpoint '{final}' could not be written ({first_line(error)}); it needs {size:.1f} MB: make room "
            f"and start the run again; {kept}."
        ) from error
    for old in checkpoints_in(folder)[:-keep]:
        remove(old)
    return final


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` steps."""
    return f"step-{step:09d}"


def checkpoints_in(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def read_state(checkpoint: Path) -> RunState:
    """What a checkpoint says about its run; raises ``CheckpointError`` when it cannot be read."""
    try:
        return record_from_mapping(RunState, read_json(checkpoint / _METADATA))
    except Arl2Error as error:
        raise _unreadable(checkpoint, error) from error


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
        tensors = read_safetensors(checkpoint / _TENSORS)
    except CheckpointError as error:
        raise _unreadable(checkpoint, error) from error
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
    for name in tensors.keys() - held.keys():
        parameter = parameters.get(name.partition("/")[2].partition("/")[2])
        if parameter is None or (tensors[name].dim() and tensors[name].shape != parameter.shape):
            raise CheckpointError(
                f"The checkpoint '{checkpoint}' has '{name:.80}' {list(tensors[name].shape)}, which no parameter has; "
                "delete it to resume from the one before."
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


def _unreadable(checkpoint: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint '{checkpoint}' cannot be read ({first_line(error)}); delete it to resume from the one before."
    )
