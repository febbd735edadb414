"""From a command's words to a run: settings file and overrides, processes, task, loop."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from arl2.files.records import record_from_mapping, record_to_mapping
from arl2.training.engine.config import read_config_values, with_overrides
from arl2.training.engine.loop import RunResult, train
from arl2.training.engine.processes import joined_processes
from arl2.training.engine.task import Task


def start_run(
    kind: type[Any],
    make_task: Callable[[Any, torch.device], Task],
    folder: Path,
    *,
    settings: Path | None = None,
    overrides: Sequence[str] = (),
    accept_changes: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Begin the run in ``folder``, or go on with it.

    Args:
        kind: the dataclass of the settings; one of them is ``loop``, a ``LoopConfig``.
        make_task: makes the task from settings and device.
        folder, settings, overrides: as for ``resolved_settings``.
        accept_changes: resume although settings differ from those that the run began with.
        console: where progress goes.
    """
    config = resolved_settings(kind, folder, settings=settings, overrides=overrides)
    with joined_processes() as processes:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            device = torch.device("cuda", processes.local_rank)
            torch.cuda.set_device(device)  # where shards are gathered
        return train(
            make_task(config, device),
            config.loop,
            folder,
            run_config=record_to_mapping(config),
            accept_changes=accept_changes,
            processes=processes,
            console=console,
        )


def resolved_settings(
    kind: type[Any], folder: Path, *, settings: Path | None = None, overrides: Sequence[str] = ()
) -> Any:
    """Every setting of a run, defaults filled in.

    Args:
        kind: the dataclass of the settings; one of them is ``loop``, a ``LoopConfig``.
        folder: of the run.
        settings: a ``.json`` or ``.toml`` file; None: the settings that ``folder`` already has, or defaults.
        overrides: words like ``loop.steps=100``.

    Raises:
        ConfigError: a file that cannot be read, an unknown name, a value that cannot be.
    """
    kept = folder / "config.json"
    if settings is None and kept.exists():
        settings = kept
    values = with_overrides(read_config_values(settings) if settings else {}, overrides)
    return record_from_mapping(kind, {"loop": {}, **values})


def start_run_from_words(
    kind: type[Any], make_task: Callable[[Any, torch.device], Task], words: Sequence[str] | None = None
) -> RunResult:
    """``start_run`` with the arguments of a command line: FOLDER, --settings, --threads, name=value."""
    parser = argparse.ArgumentParser(description="Train; run the same words again to go on with a stopped run.")
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="for example loop.max_minutes=30")
    parser.add_argument("--settings", type=Path, help=".json or .toml file with settings")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--accept-changes", action="store_true", help="resume with settings that differ")
    given = parser.parse_intermixed_args(words)
    if given.threads:
        torch.set_num_threads(given.threads)
    return start_run(
        kind,
        make_task,
        given.folder,
        settings=given.settings,
        overrides=given.overrides,
        accept_changes=given.accept_changes,
    )
