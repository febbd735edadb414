"""The words of ``convert`` and ``export`` that say which model: name, folder or checkpoint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.cli import words
from arl2.cli.loading import BRANCHES

if TYPE_CHECKING:
    from arl2.pipeline.resolve import ResolvedSource


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """MODEL and where its parts are."""
    parser.add_argument(
        "model", metavar="MODEL", help="shapes, a name that 'arl2 models' lists, a folder, or a checkpoint"
    )
    group = parser.add_argument_group("model")
    group.add_argument("--weights", type=Path, metavar="FILE", help="AR checkpoint (.pt, .safetensors) over the model")
    group.add_argument("--base", type=Path, metavar="FOLDER", help="with text encoder and VAE, for a checkpoint")
    group.add_argument("--config", type=Path, metavar="YAML", help="published config: steps, block size, window")
    group.add_argument("--weights-branch", choices=BRANCHES, default=BRANCHES[0], help="of a file with two sets")
    group.add_argument("--heads", type=words.whole_from_one, help="of attention, if the file does not tell")


def source_of(arguments: argparse.Namespace, *, alone: bool = False) -> "ResolvedSource":
    """What the words mean; errors as for ``resolve_source``."""
    from arl2.pipeline.options import ModelSource
    from arl2.pipeline.resolve import resolve_source

    source = ModelSource(
        model=arguments.model,
        weights=arguments.weights,
        base=arguments.base,
        config=arguments.config,
        weights_branch=arguments.weights_branch,
    )
    return resolve_source(source, heads=arguments.heads, transformer_alone=alone)
