"""Writing clips shard by shard, each complete or absent, so that a stopped run resumes where it was."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arl2.errors import CheckpointError, ConfigError, NonFiniteError
from arl2.files.atomic import atomic_file, being_written, remove_all_stale, who_writes
from arl2.training.clips.dataset import COLUMNS, Clip
from arl2.training.clips.folder import (
    INDEX,
    ClipIndex,
    missing_shards,
    not_written,
    read_index,
    require_datasets,
    shard_file,
    write_marker,
    write_small,
)

_YOUNGER_FACTS = ("transformer_hash", "codec_hash", "text_hash")


class ClipWriter:
    """Fills a folder with the shards of an index. Several processes may write different shards of one folder.

    Args:
        folder: created if needed; one that was begun with the same index is continued.
        index: of the clips to be.

    Raises:
        CheckpointError: the folder cannot be written, or its index is damaged.
        ConfigError: the folder holds clips of another index, or the package ``datasets`` is not installed.
    """

    def __init__(self, folder: str | Path, index: ClipIndex) -> None:
        require_datasets()
        self.folder, self.index = Path(folder), index
        if not (self.folder / INDEX).exists():
            write_small(self.folder / INDEX, index.as_json())
        self._check_same()
        for place in (self.folder, shard_file(self.folder, 0).parent):
            remove_all_stale(place)

    def missing(self) -> list[int]:
        """Shards that are not complete yet.

        Raises:
            CheckpointError: one that was complete and was truncated or changed.
        """
        return missing_shards(self.folder, self.index)

    def write(self, shard: int, clips: Iterable[Clip]) -> None:
        """Write one shard; ``clips`` are its clips in order, taken one by one.

        Raises:
            CheckpointError: too few or too many clips, one of another shape, or a disk that is full.
            NonFiniteError: a clip with NaN, infinity, or numbers beyond float16.
        """
        from datasets import Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        half = List(Value("float16"))
        features = Features(dict(zip(COLUMNS, (half, half, Value("string"), Value("int64")), strict=True)))
        file, expected = shard_file(self.folder, shard), len(self.index.clips_of(shard))
        _make_folder(file.parent)
        if being_written(file):
            raise CheckpointError(f"{file} is being written by another process ({who_writes(file)}); wait for it.")
        written = 0
        try:
            with atomic_file(file, flush=True) as partial:
                with (
                    partial.open("wb") as stream,
                    ArrowWriter(stream=stream, features=features, writer_batch_size=1) as writer,
                ):
                    for clip in clips:
                        writer.write(self._row(clip, self.index.clips_of(shard).start + written))
                        written += 1
                    writer.finalize(close_stream=False)
                if written != expected:
                    raise CheckpointError(f"Shard {shard} takes {expected} clips; got {written}, and kept none.")
        except OSError as error:
            raise not_written(file, error) from error
        write_marker(self.folder, shard, clips=expected)

    def _row(self, clip: Clip, number: int) -> dict[str, Any]:
        if tuple(clip.latents.shape) != self.index.latents or clip.text.shape[1] != self.index.text_width:
            raise CheckpointError(
                f"Clip {number} has latents {list(clip.latents.shape)} and text {list(clip.text.shape)}; this folder "
                f"holds {list(self.index.latents)} and rows of {self.index.text_width}."
            )
        numbers = {"latents": clip.latents, "text": clip.text}
        flat = {name: _halves(tensor, f"The {name} of clip {number}") for name, tensor in numbers.items()}
        return {**flat, "caption": clip.caption, "seed": clip.seed}

    def _check_same(self) -> None:
        found = read_index(self.folder)
        before, now = json.loads(found.as_json()), json.loads(self.index.as_json())
        for one in (before, now):
            one.pop("about")
        flat = [{**one.pop("facts"), **one} for one in (before, now)]
        for name in _YOUNGER_FACTS:
            if name not in flat[0]:  # begun before this was recorded
                flat[1].pop(name, None)
        other = sorted(name for name in flat[0].keys() | flat[1].keys() if flat[0].get(name) != flat[1].get(name))
        if other:
            name = other[0]
            raise ConfigError(
                f"{self.folder} holds clips made with other settings: {name} was {flat[0].get(name)} and is "
                f"{flat[1].get(name)} ({len(other)} such settings); run the command as it was, or give another folder."
            )


def _halves(tensor: Tensor, what: str) -> Any:
    half = tensor.detach().to(device="cpu", dtype=torch.float16).contiguous()
    if not bool(torch.isfinite(half).all()):
        raise NonFiniteError(f"{what} hold NaN, infinity or numbers beyond float16; check the model and its dtype.")
    return half.numpy().reshape(-1)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(folder, error) from error
