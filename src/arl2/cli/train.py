"""``arl2 train codec | teacher``: train a part of a model, or go on with a run that was stopped."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from arl2.cli import words

if TYPE_CHECKING:
    from arl2.training.loop import RunResult

_PARTS = {
    "codec": "pixels to latents and back, on rendered clips",
    "teacher": "the transformer and its text part, on latents of a trained codec (give codec=FOLDER)",
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command and its parts."""
    parser = commands.add_parser(
        "train",
        help="train the codec or the teacher of the shapes world",
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
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and say where the result is; 130 if it was interrupted (the same words go on from there)."""
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = _train(arguments)
    print(
        f"{result.reason} after {result.step} steps, {result.minutes:.1f} minutes; "
        f"checkpoint {result.checkpoint}, export {result.export}"
    )
    return 130 if result.reason == "interrupted" else 0


def _train(arguments: argparse.Namespace) -> "RunResult":
    from arl2.training.start import start_run

    overrides = list(arguments.overrides)
    if arguments.max_minutes is not None:
        overrides.append(f"loop.max_minutes={arguments.max_minutes}")
    shared = {
        "settings": arguments.settings,
        "overrides": overrides,
        "accept_changes": arguments.accept_changes,
        "console": Console(stderr=True),
    }
    if arguments.part == "codec":
        from arl2.training.codec import CodecConfig, CodecTask

        return start_run(
            CodecConfig, lambda config, device: CodecTask(config, device=device), arguments.folder, **shared
        )
    from arl2.training.teacher import TeacherConfig, TeacherTask

    return start_run(
        TeacherConfig, lambda config, device: TeacherTask(config, device=device), arguments.folder, **shared
    )
