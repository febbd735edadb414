"""What ``convert`` and ``export`` share: a model's files, found without loading them, and a rewritten folder."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.cli.checks import check_source, require_model
from arl2.files.places import check_place
from arl2.pipeline.options import ModelSource

if TYPE_CHECKING:
    from arl2.model.transformer import CausalWanTransformer3DModel
    from arl2.pipeline.resolve import ResolvedSource


def stored_model(source: ModelSource, command: str, *, heads: int | None, alone: bool = False) -> "ResolvedSource":
    """Which files the options mean; errors as for ``resolve_source``."""
    from arl2.pipeline.resolve import resolve_source

    check_source(source)
    model = require_model(source.model, command)
    return resolve_source(replace(source, model=model), heads=heads, transformer_alone=alone)


def check_model_place(folder: Path, *, overwrite: bool) -> None:
    """Check the new folder of a model before the model is read; ``overwrite`` replaces a model, and nothing else."""
    check_place(folder, "model files", folder=True, overwrite=overwrite, replaceable=_is_model)


def _is_model(folder: Path) -> bool:
    from arl2.pipeline.folder import holds_only_a_pipeline

    return holds_only_a_pipeline(folder)


def write_folder(
    source: "ResolvedSource", model: "CausalWanTransformer3DModel", folder: Path, *, overwrite: bool
) -> None:
    """The folder of a whole model; one that is there gives way once the new one is complete."""
    from arl2.pipeline.rewriting import write_pipeline

    write_pipeline(source, model, folder, replace=overwrite and folder.is_dir())
