"""``arl2 train codec | teacher | align | distill``: train a part of a model, or go on with a run that was stopped."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from arl2.cli import words

if TYPE_CHECKING:
    from arl2.training.task import Task

_PARTS = {
    "codec": "pixels to latents and back, on rendered clips",
    "teacher": "the transformer and its text part, on latents of a trained codec (give codec=FOLDER)",
    "align": "hybrid layers, each to give what the softmax layer in its place gives (stage 1; give clips=[FOLDER])",
    "distill": "the whole hybrid model to follow its teacher (stage 2; give aligned=FOLDER and clips=[FOLDER])",
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command and its parts."""
    parser = commands.add_parser(
        "train",
        help="train the shapes world's codec and teacher, or a converted model",
        description="Train a part of a model. The same words again go on with a run that was stopped. Under torchrun "
        "(torchrun -m arl2.cli.main train ...) several processes share the work.",
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for part, description in _PARTS.items():
        one = parts.add_parser(part, help=description, description=f"Train {description}.")
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
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say where the result is; 130 if it was interrupted (the same words go on from there)."""
    import torch

    from arl2.training.start import resolved_settings, start_run

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    overrides = list(arguments.overrides)
    if arguments.max_minutes is not None:
        overrides.append(f"loop.max_minutes={arguments.max_minutes}")
    kind, make_task = _part(arguments.part)
    if arguments.dry_run:
        from arl2.training.dry_run import dry_run

        print(dry_run(resolved_settings(kind, arguments.folder, settings=arguments.settings, overrides=overrides)))
        return 0
    result = start_run(
        kind,
        lambda config, device: make_task(config, device=device),
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


def _part(name: str) -> "tuple[type[Any], Callable[..., Task]]":
    """The settings and the task of a part; only that part is imported."""
    if name == "codec":
        from arl2.training.codec import CodecConfig, CodecTask

        return CodecConfig, CodecTask
    if name == "teacher":
        from arl2.training.teacher import TeacherConfig, TeacherTask

        return TeacherConfig, TeacherTask
    if name == "align":
        from arl2.training.align import AlignConfig, AlignTask

        return AlignConfig, AlignTask
    from arl2.training.distill import DistillConfig, DistillTask

    return DistillConfig, DistillTask
