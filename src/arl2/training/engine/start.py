"""From settings to a run: file and overrides, device, processes, task, loop."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from arl2.errors import ConfigError
from arl2.files.places import check_place
from arl2.files.records import record_from_mapping, record_to_mapping
from arl2.files.regular import naming
from arl2.pipeline.devices import AUTO, best_device
from arl2.training.engine.config import read_config_values, with_overrides, without_retired
from arl2.training.engine.loop import RunResult, train
from arl2.training.engine.processes import joined_processes
from arl2.training.engine.registry import find_task, task_classes
from arl2.training.engine.task import Task


def start_run(
    task: str,
    folder: Path,
    *,
    settings: Path | None = None,
    overrides: Sequence[str] = (),
    accept_changes: bool = False,
    device: torch.device | str | None = None,
    console: Console | None = None,
) -> RunResult:
    """Begin the run in ``folder``, or resume it.

    Args:
        task: name of a registered training task.
        folder, settings, overrides: as for ``resolved_settings``.
        accept_changes: resume although settings differ from those that the run began with.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` and others; None: CUDA where there is one. Of several processes
            each takes the GPU of its local rank, unless the device has a number.
        console: where progress goes.

    Raises:
        ConfigError: as for ``resolved_settings``, a device that is not there, or a folder that cannot be written.
    """
    check_place(folder, "run files", folder=True, added_to=True)
    config, make_task = _config_and_task(task, folder, settings, overrides)
    return run_task(
        lambda here: make_task(config, device=here),
        config,
        folder,
        accept_changes=accept_changes,
        device=device,
        console=console,
    )


def run_task(
    make_task: Callable[[torch.device], Task],
    config: Any,
    folder: Path,
    *,
    accept_changes: bool = False,
    device: torch.device | str | None = None,
    console: Console | None = None,
) -> RunResult:
    """``start_run`` with a task that is not registered and a settings record that is complete."""
    with joined_processes() as processes:
        return train(
            make_task(_device(device, processes.local_rank)),
            config.loop,
            folder,
            run_config=record_to_mapping(config),
            accept_changes=accept_changes,
            processes=processes,
            console=console,
        )


def resolved_settings(
    task: str, folder: Path | None, *, settings: Path | None = None, overrides: Sequence[str] = ()
) -> Any:
    """Every setting of a run, defaults filled in.

    Args:
        task: name of a registered training task.
        folder: of the run; None: of none yet.
        settings: a ``.json`` or ``.toml`` file; None: the settings that ``folder`` already has, or defaults.
        overrides: words like ``loop.steps=100``.

    Raises:
        ConfigError: a file that cannot be read, an unknown name, a value that is not accepted.
    """
    return _config_and_task(task, folder, settings, overrides)[0]


def _config_and_task(
    task: str, folder: Path | None, settings: Path | None, overrides: Sequence[str]
) -> tuple[Any, Callable[..., Task]]:
    kept = folder / "config.json" if folder is not None else None
    if settings is None and kept is not None and kept.exists():
        settings = kept
    values = {"loop": {}, **with_overrides(read_config_values(settings) if settings else {}, overrides)}
    # Errors say where a value comes from; with overrides, it may be from either.
    where = "" if settings is None else f"'{settings}'" + (f" with {' '.join(overrides)}" if overrides else "")
    with naming(where) if where else nullcontext():
        kind, make_task = task_classes(find_task(task, values))
        values = without_retired(kind, values)
    return record_from_mapping(kind, values, where=where), make_task


def _device(asked: torch.device | str | None, local_rank: int) -> torch.device:
    if asked == AUTO:
        asked = best_device()
    device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"The device is '{device}', but there is no GPU that torch can use; give cpu.")
    device = torch.device("cuda", local_rank if device.index is None else device.index)
    torch.cuda.set_device(device)  # where shards are gathered
    return device
