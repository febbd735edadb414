"""Embeddings of prompts kept on disk, so that a prompt is encoded once and the encoder need not even be loaded."""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from arl2.errors import CheckpointError, ConfigError
from arl2.files.atomic import write_atomically
from arl2.files.tensors import read_safetensors_with_metadata

logger = logging.getLogger(__name__)

_VERSION = 1
_NAME = "embeddings"
_DIGEST = "sha256"
_HEADER_LIMIT = 4096  # bytes of a file other than its numbers


def embedding_key(tokens: Sequence[int], *, encoder: str, dtype: torch.dtype) -> str:
    """The name under which the embeddings of a prompt are kept: a SHA-256 in hexadecimal.

    It is taken of the tokens that the encoder sees rather than of the text: a prompt cut at another length or split by
    another tokenizer is another entry, and prompts that the encoder cannot tell apart are one.

    Args:
        tokens: ids, cut to the length of the text part.
        encoder: fingerprint of the encoder.
        dtype: of the embeddings.
    """
    return hashlib.sha256(json.dumps([_VERSION, encoder, str(dtype), list(tokens)]).encode()).hexdigest()


class EmbeddingCache:
    """A folder with a file for each prompt; it can be shared by processes, and deleted at any time.

    A file holds the embeddings of the prompt's own tokens (no padding) and their SHA-256, and not the prompt. It is
    written atomically.

    Args:
        folder: made when the first file is written.

    Raises:
        ConfigError: the path is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"The embedding cache {self.folder} is a file; give a folder.")

    def read(self, key: str, *, shape: tuple[int, int], dtype: torch.dtype) -> Float[Tensor, "tokens width"] | None:
        """The embeddings of a key on the CPU, or None if there are none; a damaged file is none, with a warning.

        Args:
            key: as `embedding_key` makes it.
            shape: tokens and width.
            dtype: what the file must hold.
        """
        path = self._path(key)
        try:
            size = path.stat().st_size
            if size > shape[0] * shape[1] * dtype.itemsize + _HEADER_LIMIT:
                raise ValueError(f"{size} bytes are too many")
            return _read(path, shape, dtype)
        except FileNotFoundError:
            return None
        except (CheckpointError, OSError, ValueError) as error:
            logger.warning("The cached embeddings %s are damaged (%s); they are computed again.", path, error)
            return None

    def write(self, key: str, embeddings: Float[Tensor, "tokens width"]) -> None:
        """Keep the embeddings of a key. A disk that does not take them is a warning: the caller has them already."""
        path = self._path(key)
        rows = embeddings.detach().cpu().contiguous()
        content = save({_NAME: rows}, metadata={_DIGEST: _digest(rows)})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content, private=True)
        except OSError as error:
            logger.warning("The embeddings of a prompt could not be kept in %s (%s).", self.folder, error)

    def _path(self, key: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise ConfigError(f"The key {key!r} is not a SHA-256 in hexadecimal; make it with embedding_key.")
        return self.folder / f"{key}.safetensors"


def _read(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    tensors, metadata = read_safetensors_with_metadata(path)
    if list(tensors) != [_NAME]:
        raise ValueError(f"it holds the tensors {list(tensors)[:3]}")
    # A copy: another process may replace the file.
    rows = tensors[_NAME].clone()
    if tuple(rows.shape) != shape or rows.dtype != dtype:
        raise ValueError(f"{list(rows.shape)} {rows.dtype} instead of {list(shape)} {dtype}")
    if metadata.get(_DIGEST) != _digest(rows):
        raise ValueError("its numbers are not those that were written")
    return rows


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.view(torch.uint8).numpy().tobytes()).hexdigest()
