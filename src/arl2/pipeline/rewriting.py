"""A model written to a new pipeline folder with another transformer.

Only the transformer is loaded: codec and text part are copied as files, and large files are linked.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from arl2.errors import CheckpointError
from arl2.files.atomic import atomic_folder
from arl2.files.plain import first_line, read_json
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.assemble import check_base, load_published_codec, load_published_text
from arl2.pipeline.folder import CODEC, TEXT, TRANSFORMER, VERIFIER, write_generation
from arl2.pipeline.resolve import ResolvedSource

# Larger files get a second name instead of a copy, where the disk is the same.
LINKED_FROM = 64_000_000
_TEXT_FOLDERS = ("tokenizer", "text_encoder")


def check_new_folder(folder: Path) -> None:
    """Raise ``CheckpointError`` for a file, or a folder that is not empty: nothing is overwritten."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CheckpointError(f"'{folder}' is there already; choose a new folder.")


def write_pipeline(source: ResolvedSource, transformer: CausalWanTransformer3DModel, folder: Path) -> None:
    """Write a pipeline folder with this transformer, atomically.

    Args:
        source: of codec, text part and settings.
        transformer: written as it is, every tensor in its dtype.
        folder: new or empty.

    Raises:
        CheckpointError: the folder is not empty, a part is missing, or the disk is full.
    """
    check_new_folder(folder)
    try:
        with atomic_folder(folder) as partial:
            transformer.save_pretrained(partial / TRANSFORMER)
            _write_parts(source, partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The model could not be written to '{folder}' ({first_line(error)}); make room or choose another folder."
        ) from error


def _write_parts(source: ResolvedSource, folder: Path) -> None:
    text = "umt5"
    if source.folder is not None:
        _copy(source.folder.codec, folder / CODEC)
        _copy(source.folder.text, folder / TEXT)
        if source.folder.verifier.is_dir():
            _copy(source.folder.verifier, folder / VERIFIER)
        text = read_json(source.folder.generation)["text"]
    elif source.base is None:
        raise CheckpointError(
            f"'{source.weights.path}' holds a transformer alone; give --base, a folder with its text encoder and VAE."
        )
    else:
        check_base(source.base)
        # The layout of diffusers is that of our folders; the first release's files are read and rewritten.
        if (source.base / "vae").is_dir():
            _copy(source.base / "vae", folder / CODEC)
        else:
            codec: Any = load_published_codec(source.base, dtype=torch.float32)
            codec.save_pretrained(folder / CODEC)
        if all((source.base / part).is_dir() for part in _TEXT_FOLDERS):
            for part in _TEXT_FOLDERS:
                _copy(source.base / part, folder / TEXT / part)
        else:
            encoder: Any = load_published_text(source.base)
            encoder.save_pretrained(folder / TEXT)
    write_generation(folder, text, source.settings)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_copy_or_link)


def _copy_or_link(source: str, target: str) -> None:
    real = Path(source).resolve()  # caches hold links to files
    if real.stat().st_size >= LINKED_FROM:
        # Another disk, or one without links: copy.
        with suppress(OSError):
            os.link(real, target)
            return
    shutil.copy2(real, target)
