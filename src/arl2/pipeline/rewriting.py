"""A model taken apart and written anew with another transformer: where its parts lie, and a folder with all of them.

Nothing but the transformer is loaded: codec and text part are files to copy, and large ones of them to link.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from arl2.checkpoints.load import transformer_config
from arl2.checkpoints.stored import load_stored
from arl2.errors import CheckpointError, ConfigError
from arl2.files.plain import first_line, read_json
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.assemble import find_recipe, load_codec, load_text
from arl2.pipeline.folder import (
    CODEC,
    GENERATION,
    TEXT,
    TRANSFORMER,
    VERIFIER,
    PipelineFolder,
    is_saved_pipeline,
    load_settings,
    pipeline_folder,
)
from arl2.rollout.settings import GenerationSettings

# Larger files get a second name instead of a copy, where the disk is the same.
LINKED_FROM = 64_000_000
_KEPT = ("block_frames", "window", "sink", "text_len")
_TEXT_FOLDERS = ("tokenizer", "text_encoder")


@dataclass(frozen=True)
class StoredModel:
    """Where the parts of a model lie.

    Attributes:
        weights: the transformer's file or folder.
        branch: of a file with EMA and plain weights, which.
        settings: how it is sampled.
        told: what no weights file tells, for ``load_transformer``.
        pipeline: parts of a saved pipeline whose codec and text part are meant; None if it is none.
        base: likewise, folder of published parts.
    """

    weights: Path
    branch: str
    settings: GenerationSettings
    told: Mapping[str, Any] = field(default_factory=dict)
    pipeline: PipelineFolder | None = None
    base: Path | None = None

    def transformer(self) -> CausalWanTransformer3DModel:
        """The transformer, every tensor as it is stored; errors as for ``load_transformer``."""
        return load_stored(self.weights, weights=self.branch, **self.told)


def find_source(
    model: str | Path,
    *,
    weights: Path | None = None,
    base: Path | None = None,
    config: Path | None = None,
    branch: str = "auto",
    heads: int | None = None,
    alone: bool = False,
) -> StoredModel:
    """Which files a name, folder or checkpoint means. Loads nothing.

    Args:
        model, weights, base, config: as for ``arl2.pipeline.assemble.assemble_pipeline``.
        branch: of a file with EMA and plain weights: ``"auto"``, ``"ema"`` or ``"plain"``.
        heads: of a file that does not tell.
        alone: a transformer without codec and text part will do.

    Raises:
        CheckpointError, ConfigError: as ``assemble_pipeline``.
    """
    given = {} if heads is None else {"num_attention_heads": heads}
    if is_saved_pipeline(model):
        if base is not None or config is not None:
            raise ConfigError(f"'{model}' is a whole pipeline; base and config go with an AR checkpoint.")
        folder = pipeline_folder(model)
        settings = load_settings(folder)
        if weights is None:
            return StoredModel(folder.transformer, branch, settings, pipeline=folder)
        own = transformer_config(folder.transformer)
        return StoredModel(weights, branch, settings, {**{name: own[name] for name in _KEPT}, **given}, folder)
    if alone and base is None and Path(model).is_file():
        return StoredModel(Path(model), branch, GenerationSettings(), given)
    recipe = find_recipe(model, weights=weights, base=base, config=config)
    return StoredModel(
        recipe.weights or recipe.base, branch, recipe.settings, {**recipe.model, **given}, base=recipe.base
    )


def check_new_folder(folder: Path) -> None:
    """Raise ``CheckpointError`` for a folder that is not empty, or a file: nothing is written over."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CheckpointError(f"'{folder}' is there already; choose a new folder.")


def write_pipeline(source: StoredModel, transformer: CausalWanTransformer3DModel, folder: Path) -> None:
    """A whole pipeline's folder with this transformer, which ``from_pretrained`` loads; whole or not there.

    Args:
        source: of codec, text part and settings.
        transformer: written as it is, every tensor in its dtype.
        folder: new or empty.

    Raises:
        CheckpointError: the folder holds something, a part is missing, or the disk is full.
    """
    check_new_folder(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        transformer.save_pretrained(partial / TRANSFORMER)
        _write_parts(source, partial)
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The model could not be written to '{folder}' ({first_line(error)}); make room or choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_parts(source: StoredModel, folder: Path) -> None:
    text = "umt5"
    if source.pipeline is not None:
        _copy(source.pipeline.codec, folder / CODEC)
        _copy(source.pipeline.text, folder / TEXT)
        if source.pipeline.verifier.is_dir():
            _copy(source.pipeline.verifier, folder / VERIFIER)
        text = read_json(source.pipeline.generation)["text"]
    elif source.base is None:
        raise CheckpointError(
            f"'{source.weights}' holds a transformer alone; give --base, a folder with its text encoder and VAE."
        )
    else:
        # In the layout of diffusers the files are what our folders hold; the first release's are read and rewritten.
        if (source.base / "vae").is_dir():
            _copy(source.base / "vae", folder / CODEC)
        else:
            codec: Any = load_codec(source.base, dtype=torch.float32)
            codec.save_pretrained(folder / CODEC)
        if all((source.base / part).is_dir() for part in _TEXT_FOLDERS):
            for part in _TEXT_FOLDERS:
                _copy(source.base / part, folder / TEXT / part)
        else:
            encoder: Any = load_text(source.base)
            encoder.save_pretrained(folder / TEXT)
    generation = {"text": text, **source.settings.to_mapping()}
    (folder / GENERATION).write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_copy_or_link)


def _copy_or_link(source: str, target: str) -> None:
    real = Path(source).resolve()  # caches hold links to files
    if real.stat().st_size >= LINKED_FROM:
        # Another disk, or one without links: then a copy it is.
        with suppress(OSError):
            os.link(real, target)
            return
    shutil.copy2(real, target)
