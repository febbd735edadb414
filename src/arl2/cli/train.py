"""``arl2 train PART``: train a part of a model, or go on with a run that was stopped."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from arl2.cli import words
from arl2.errors import ConfigError
from arl2.training.engine.registry import TASKS, former_names

_OTHER_STAGE = {"align": "distill", "distill": "align"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command and its parts."""
    parser = commands.add_parser(
        "train",
        help="train the shapes world's codec and teacher, or a converted model",
        description="Train a part of a model. The same words again go on with a run that was stopped. Under torchrun "
        "(torchrun -m arl2.cli.main train ...) several processes share the work.",
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for task in TASKS.values():
        part, description = task.name, task.description
        one = parts.add_parser(part, aliases=former_names(part), help=description, description=f"Train {description}.")
        one.add_argument("folder", type=Path, metavar="FOLDER", help="of the run: settings, log, checkpoints, export")
        one.add_argument(
            "overrides", nargs="*", metavar="name=value", help="settings, such as loop.seed=1; right after FOLDER"
        )
        one.add_argument("--settings", type=Path, metavar="FILE", help=".json or .toml file of settings")
        one.add_argument("--max-minutes", type=float, metavar="M", help="the same as loop.max_minutes=M")
        one.add_argument("--threads", type=words.whole_from_one, help="CPU threads")
        one.add_argument("--accept-changes", action="store_true", help="go on although settings differ from the run's")
        one.add_argument(
            "--dry-run",
            action="store_true",
            help="print every setting (of a conversion also what trains, memory and operations), and do nothing",
        )
        if part in _OTHER_STAGE:
            _add_cluster(one.add_argument_group("with --dry-run: what the run takes on GPUs"))
    parser.set_defaults(run=run)


def _add_cluster(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--gpus", type=int, metavar="N", help="that share the batches of a step")
    group.add_argument("--gpu-memory", type=float, metavar="GB", help="of one (default: 80, an H100's)")
    group.add_argument(
        "--gpu-tflops", type=float, metavar="T", help="peak of one, dense bfloat16 (default: 989, an H100's)"
    )
    group.add_argument(
        "--utilisation", type=float, metavar="SHARE", help="of the peak that a run is taken to reach (default: 0.4)"
    )
    group.add_argument("--other-stage", type=Path, metavar="FILE", help="settings of the other stage: adds its time")
    group.add_argument(
        "--teacher-clips", type=words.whole_from_one, metavar="N", help="rollouts of the teacher: adds their time"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, and say where the result is; 130 if it was interrupted (the same words go on from there)."""
    import torch

    from arl2.training.engine.start import resolved_settings, start_run

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    overrides = list(arguments.overrides)
    if arguments.max_minutes is not None:
        overrides.append(f"loop.max_minutes={arguments.max_minutes}")
    if arguments.dry_run:
        config = resolved_settings(arguments.part, arguments.folder, settings=arguments.settings, overrides=overrides)
        print(_dry_run(config, arguments))
        return 0
    if arguments.part in _OTHER_STAGE and _cluster_words(arguments):
        raise ConfigError(f"{_cluster_words(arguments)[0]} goes with --dry-run; add it.")
    result = start_run(
        arguments.part,
        arguments.folder,
        settings=arguments.settings,
        overrides=overrides,
        accept_changes=arguments.accept_changes,
        console=Console(stderr=True),
    )
    print(
        f"{result.reason} after {result.step} steps, {result.minutes:.1f} minutes; "
        f"checkpoint {result.checkpoint}, export {result.export}"
    )
    return 130 if result.reason == "interrupted" else 0


def _dry_run(config: Any, arguments: argparse.Namespace) -> str:
    from arl2.training.conversion.cluster import Cluster
    from arl2.training.conversion.dry_run import dry_run
    from arl2.training.engine.start import resolved_settings

    if arguments.part not in _OTHER_STAGE:
        return dry_run(config)
    if arguments.gpus is None:
        if given := _cluster_words(arguments):
            raise ConfigError(f"{given[0]} goes with --gpus N; add it.")
        return dry_run(config)
    other = None
    if arguments.other_stage is not None:
        other = resolved_settings(_OTHER_STAGE[arguments.part], None, settings=arguments.other_stage)
    numbers = {"memory": arguments.gpu_memory, "tflops": arguments.gpu_tflops, "utilisation": arguments.utilisation}
    cluster = Cluster(arguments.gpus, **{name: value for name, value in numbers.items() if value is not None})
    return dry_run(config, cluster, other_stage=other, teacher_clips=arguments.teacher_clips)


def _cluster_words(arguments: argparse.Namespace) -> list[str]:
    names = ("gpus", "gpu_memory", "gpu_tflops", "utilisation", "other_stage", "teacher_clips")
    return [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]
