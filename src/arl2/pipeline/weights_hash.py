"""A hash of the files that a model is loaded from, before anything is loaded: has the model changed since?"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from arl2.errors import CheckpointError
from arl2.pipeline.options import ModelSource
from arl2.pipeline.parts import find_parts
from arl2.pipeline.resolve import resolve_source

# Of a larger file this much of every stretch is read, and its end.
_WHOLE, _STRETCH, _PIECE = 64 << 20, 1 << 20, 4 << 10
# Files that a model may be read from; a readme or a log beside them changes nothing.
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".json", ".model", ".txt", ".yaml", ".yml")


def files_hash(source: ModelSource) -> str:
    """Hexadecimal, 64 digits, of transformer, codec, text part, reward model and settings, wherever they lie.

    Of files above 64 MiB size, end and 4 KiB of each MiB are read, so that a model of tens of gigabytes takes seconds;
    a training changes them everywhere.

    Raises:
        CheckpointError, ConfigError: as for ``resolve_source``, or a file that cannot be read.
    """
    resolved = resolve_source(source)
    places: dict[str, Path | None] = {"transformer": resolved.weights.path}
    if resolved.folder is not None:
        folder = resolved.folder
        places |= {
            "codec": resolved.vae or folder.codec,
            "text": resolved.text_encoder or folder.text,
            "reward model": folder.verifier,
            "settings": folder.generation,
        }
    elif resolved.is_published:
        parts = find_parts(resolved.base, vae=resolved.vae, text_encoder=resolved.text_encoder)
        places |= {"codec": parts.vae, "text": parts.text_encoder, "tokenizer": parts.tokenizer}
    places |= {"decoder": resolved.decoder, "config": source.config}
    if resolved.weights.path.is_file():
        places["transformer config"] = resolved.weights.path.with_name("config.json")
    digest = hashlib.sha256()
    for part, place in places.items():
        for name, file in _files(place):
            digest.update(f"{part} {name}\n".encode(errors="backslashreplace"))
            _add(digest, file)
    return digest.hexdigest()


def _files(place: Path | None) -> Iterator[tuple[str, Path]]:
    """Files of a part with their names in it; a file's own name says nothing."""
    if place is None:
        return
    if place.is_file():
        yield "", place
    for file in sorted(place.rglob("*")) if place.is_dir() else ():
        if file.suffix in _SUFFIXES and file.is_file():
            yield file.relative_to(place).as_posix(), file


def _add(digest: "hashlib._Hash", file: Path) -> None:
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            digest.update(f"{size}\n".encode())
            if size <= _WHOLE:
                while part := opened.read(_STRETCH):
                    digest.update(part)
                return
            for start in (*range(0, size - _PIECE, _STRETCH), size - _PIECE):
                opened.seek(start)
                digest.update(opened.read(_PIECE))
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read ({error.strerror}); check its permissions.") from error
