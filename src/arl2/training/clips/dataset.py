"""Clips to train on, read by number: latents, prompt embeddings and caption, memory-mapped from shards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import CheckpointError, GeometryError
from arl2.files.regular import parsed_by_others
from arl2.training.clips.folder import (
    INDEX,
    ClipIndex,
    missing_shards,
    read_index,
    require_datasets,
    require_intact_shards,
    shard_file,
)

COLUMNS = ("latents", "text", "caption", "seed")


@dataclass(frozen=True)
class Clip:
    """One clip.

    Attributes:
        latents: normalised, ``[C, F, h, w]``; on disk in float16.
        text: prompt embeddings ``[words, text_dim]`` of the prompt's own length, without padding; on disk in float16.
        caption: the prompt.
        seed: of the clip's noise, or of its scene.
    """

    latents: Float[Tensor, "channels frames height width"]
    text: Float[Tensor, "words text_width"]
    caption: str
    seed: int


class ClipSet:
    """All clips of a folder that ``arl2 rollouts`` wrote. Nothing is read before it is used.

    Use :meth:`open`. One set may be read by several threads, and each process opens its own.
    """

    def __init__(self, folder: Path, index: ClipIndex, rows: Any) -> None:
        self.folder, self._index, self._rows = folder, index, rows

    @classmethod
    def open(cls, folder: str | Path) -> "ClipSet":
        """Map the shards of a folder.

        Raises:
            CheckpointError: no such folder, a shard that is missing, truncated, damaged or of other columns.
            ConfigError: the package ``datasets`` is not installed.
        """
        folder = Path(folder)
        index = read_index(folder)
        require_datasets()
        missing = missing_shards(folder, index)
        if missing:
            shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {index.shards} shards ({shown}); run the command that "
                "began it again."
            )
        # Before a library maps them: it believes what it reads.
        require_intact_shards(folder, index.shards)
        from datasets import concatenate_datasets

        rows = concatenate_datasets([_mapped(folder, shard, index) for shard in range(index.shards)])
        return cls(folder, index, rows.with_format("arrow"))

    def __len__(self) -> int:
        return self._index.clips

    @property
    def frames(self) -> int:
        """Latent frames of every clip."""
        return self._index.latents[1]

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, latent frames, height and width of every clip."""
        return self._index.latents

    @property
    def text_width(self) -> int:
        """Numbers for each word of the prompt embeddings."""
        return self._index.text_width

    @property
    def facts(self) -> Mapping[str, Any]:
        """Metadata of where the clips come from: source, model hash, codec, seed, block_frames and so on."""
        return self._index.facts

    def __getitem__(self, index: int) -> Clip:
        """The clip of that number, in float32.

        Raises:
            GeometryError: no such clip.
        """
        if not 0 <= index < len(self):
            raise GeometryError(f"There is no clip {index}: {self.folder} holds clips 0 to {len(self) - 1}.")
        row = self._rows[index]
        # A copy: what is mapped cannot be written to, and tensors can.
        latents = torch.tensor(row["latents"].chunk(0).flatten().to_numpy()).float()
        text = torch.tensor(row["text"].chunk(0).flatten().to_numpy()).float()
        if latents.numel() != math.prod(self._index.latents) or text.numel() % self._index.text_width:
            raise CheckpointError(
                f"Clip {index} of {self.folder} has {latents.numel()} numbers of latents and {text.numel()} of text, "
                f"but {INDEX} says latents {list(self._index.latents)} and rows of {self._index.text_width}; make the "
                "clips again in another folder."
            )
        return Clip(
            latents=latents.reshape(self._index.latents),
            text=text.reshape(-1, self._index.text_width),
            caption=row["caption"][0].as_py(),
            seed=row["seed"][0].as_py(),
        )

    def batch(
        self, indices: Sequence[int]
    ) -> tuple[Float[Tensor, "batch channels frames height width"], Float[Tensor, "batch words text_width"], list[str]]:
        """Some clips side by side: latents, prompt embeddings padded with zeros to the longest, captions.

        Raises:
            GeometryError: no clip, or one that is not there.
        """
        if not indices:
            raise GeometryError("A batch needs one clip or more; got none.")
        clips = [self[i] for i in indices]
        text = torch.nn.utils.rnn.pad_sequence([clip.text for clip in clips], batch_first=True)
        return torch.stack([clip.latents for clip in clips]), text, [clip.caption for clip in clips]


def _mapped(folder: Path, shard: int, index: ClipIndex) -> Any:
    from datasets import Dataset

    path = shard_file(folder, shard)
    with parsed_by_others(path, "a complete Arrow file (to make it again, delete it and its .json)"):
        rows = Dataset.from_file(str(path))
    expected = len(index.clips_of(shard))
    if tuple(rows.column_names) != COLUMNS or len(rows) != expected:
        raise CheckpointError(
            f"{path} holds {len(rows)} rows of {rows.column_names}; {expected} rows of {list(COLUMNS)} belong there."
        )
    return rows
