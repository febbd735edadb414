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
from arl2.files.atomic import atomic_folder, being_written, who_writes
from arl2.files.modes import open_to_readers
from arl2.files.regular import first_line
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.assemble import load_text
from arl2.pipeline.folder import CODEC, TEXT, TRANSFORMER, VERIFIER, text_name, write_generation, write_index
from arl2.pipeline.parts import TEXT_ENCODER, TOKENIZERS, PublishedParts, find_parts, load_vae
from arl2.pipeline.resolve import ResolvedSource

# Larger files get a second name instead of a copy, where the disk is the same.
LINKED_FROM = 64_000_000
_TEXT_FOLDERS = (TOKENIZERS[0], TEXT_ENCODER)


def check_new_folder(folder: Path) -> None:
    """Raise ``CheckpointError`` for a file, or a folder that is not empty: nothing is overwritten."""
    if folder.is_file() or folder.is_symlink() or (folder.is_dir() and any(folder.iterdir())):
        raise CheckpointError(f"'{folder}' is there already; choose a new folder.")
    if being_written(folder):
        raise CheckpointError(f"'{folder}' is being written by {who_writes(folder)}; wait for it, or choose another.")


def write_pipeline(
    source: ResolvedSource, transformer: CausalWanTransformer3DModel, folder: Path, *, replace: bool = False
) -> None:
    """Write a pipeline folder with this transformer, atomically.

    Args:
        source: of codec, text part and settings.
        transformer: written as it is, every tensor in its dtype.
        folder: new or empty.
        replace: a folder that is there gives way once the new one is complete.

    Raises:
        CheckpointError: the folder is not empty, a part is missing, or the disk is full.
    """
    if not replace:
        check_new_folder(folder)
    try:
        with atomic_folder(folder, replace=replace) as partial:
            transformer.save_pretrained(partial / TRANSFORMER)
            _write_parts(source, partial)
            open_to_readers(partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The model could not be written to '{folder}' ({first_line(error)}); make room or choose another folder."
        ) from error


def _write_parts(source: ResolvedSource, folder: Path) -> None:
    if source.folder is None and not source.is_published:
        raise CheckpointError(
            f"'{source.weights.path}' holds a transformer alone; give --base, a folder with its text encoder and VAE."
        )
    _write_codec(source, folder / CODEC)
    text = _write_text(source, folder / TEXT)
    if source.folder is not None and source.folder.verifier.is_dir():
        _copy(source.folder.verifier, folder / VERIFIER)
    write_generation(folder, text, source.settings)
    write_index(folder)


def _write_codec(source: ResolvedSource, target: Path) -> None:
    """A folder is copied, as its layout is that of diffusers; a single file is read and rewritten."""
    place = source.vae or (_published(source).vae if source.folder is None else source.folder.codec)
    if place.is_dir():
        _copy(place, target)
    else:
        codec: Any = load_vae(place, dtype=torch.float32)
        codec.save_pretrained(target)


def _write_text(source: ResolvedSource, target: Path) -> str:
    """As ``_write_codec``; the name of the text part's class."""
    if source.folder is not None and source.text_encoder is None:
        _copy(source.folder.text, target)
        return str(text_name(source.folder))
    parts = None if source.folder is not None else _published(source)
    if parts and parts.tokenizer and (parts.tokenizer.name, parts.text_encoder.name) == _TEXT_FOLDERS:
        _copy(parts.tokenizer, target / parts.tokenizer.name)
        _copy(parts.text_encoder, target / parts.text_encoder.name)
    else:
        text: Any = load_text(source)
        text.save_pretrained(target)
    return "umt5"


def _published(source: ResolvedSource) -> PublishedParts:
    return find_parts(source.base, vae=source.vae, text_encoder=source.text_encoder)


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
