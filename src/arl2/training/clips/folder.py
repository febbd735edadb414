"""How a folder of clips lies on disk: one index, and shards that are complete or absent.

::

    clips.json            what all clips share, and how many there are
    shards/00000.arrow    clips 0 to K - 1, a plain Arrow stream that any Arrow reader opens
    shards/00000.json     its length and checksum; written last, so a shard with this file is complete

Of the well-kept libraries for shards the choice is Hugging Face ``datasets`` over Arrow files: they are memory-mapped,
any clip is read by its number without reading others (a resumed run must see the clips that its key names), nothing in
them can run code, and it adds eight small packages. WebDataset reads tar files front to back and knows no numbers;
litdata and mosaicml-streaming bring cloud clients, and versions of torch and numpy of their own.
"""

import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arl2.errors import Arl2Error, CheckpointError, ConfigError, GeometryError
from arl2.files.atomic import write_atomically
from arl2.files.plain import read_json
from arl2.files.records import record_from_mapping

logger = logging.getLogger(__name__)

INDEX = "clips.json"
FORMAT = "arl2 clips 1"
_SHARDS = "shards"
_MOST_SHARDS = 100_000
_READERS = 8  # files that are checked at once


@dataclass(frozen=True, kw_only=True)
class ClipIndex:
    """What all clips of a folder share.

    Attributes:
        clips: how many the folder holds once it is complete.
        shard_clips: of one shard; the last shard holds the rest.
        latents: channels, latent frames, height and width of every clip's latents.
        text_width: numbers for each word of the prompt embeddings.
        facts: metadata of where the clips come from (model hash, codec, seed, block_frames, ...), as JSON values; a
            folder is continued only if all are the same.
        about: words for people, not compared.
    """

    clips: int
    shard_clips: int
    latents: tuple[int, int, int, int]
    text_width: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""

    def __post_init__(self) -> None:
        if min(self.clips, self.shard_clips, self.text_width, *self.latents) < 1 or len(self.latents) != 4:
            raise GeometryError(
                f"{self.clips} clips in shards of {self.shard_clips}, of latents {list(self.latents)} and text width "
                f"{self.text_width}: each must be 1 or more, and latents have 4 sizes."
            )

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.clips // self.shard_clips)

    def clips_of(self, shard: int) -> range:
        """Numbers of the clips in a shard."""
        return range(shard * self.shard_clips, min((shard + 1) * self.shard_clips, self.clips))

    def as_json(self) -> str:
        """The text of ``clips.json``."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n"


def read_index(folder: Path) -> ClipIndex:
    """The index of a folder of clips.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointError(f"{folder} is no folder of clips: it has no {INDEX}; make one with 'arl2 rollouts'.")
    try:
        values = read_json(path)
        if values.pop("format", None) != FORMAT:
            raise CheckpointError(f"its format is not {FORMAT!r}")
        return record_from_mapping(ClipIndex, values)
    except Arl2Error as error:
        raise CheckpointError(f"{path} is damaged ({error}); make the clips again in another folder.") from error


def shard_file(folder: Path, shard: int) -> Path:
    """The Arrow file of a shard."""
    return folder / _SHARDS / f"{shard:05d}.arrow"


def marker_file(folder: Path, shard: int) -> Path:
    """The file that says a shard is complete."""
    return folder / _SHARDS / f"{shard:05d}.json"


def missing_shards(folder: Path, index: ClipIndex) -> list[int]:
    """Shards that are not complete yet.

    Raises:
        CheckpointError: as ``shard_is_whole``, or an index that names far more shards than any run begins.
    """
    if index.shards > _MOST_SHARDS:
        raise CheckpointError(
            f"{folder / INDEX} names {index.clips:,} clips in {index.shards:,} shards; at most {_MOST_SHARDS:,} shards "
            "are accepted."
        )
    return [shard for shard in range(index.shards) if not shard_is_whole(folder, shard)]


def shard_is_whole(folder: Path, shard: int) -> bool:
    """Whether a shard was completed and still has its length, by its size alone.

    Raises:
        CheckpointError: a completed shard that is shorter or longer than when it was written, or a damaged marker.
    """
    marker, file = marker_file(folder, shard), shard_file(folder, shard)
    if not marker.is_file():
        return False
    expected = _marked(marker)["bytes"]
    found = file.stat().st_size if file.is_file() else 0
    if found != expected:
        raise CheckpointError(
            f"{file} has {found} of {expected} bytes: it was truncated or changed; delete {marker} and run "
            "'arl2 rollouts' again to make that shard."
        )
    return True


def write_marker(folder: Path, shard: int, *, clips: int) -> None:
    """Say that a shard is complete, with the checksum of its file; raises ``CheckpointError`` as ``write_small``."""
    file = shard_file(folder, shard)
    try:
        content = {"bytes": file.stat().st_size, "clips": clips, "sha256": _sha256(file)}
    except OSError as error:
        raise not_written(file, error) from error
    write_small(marker_file(folder, shard), json.dumps(content))


def require_intact_shards(folder: Path, shards: int) -> None:
    """Check every shard's bytes: each file is read once, several at a time.

    Raises:
        CheckpointError: a shard that is not what was written. Of shards that have no checksum, as those of earlier
            versions, a warning says so once.
    """
    markers = [_marked(marker_file(folder, shard)) for shard in range(shards)]
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as threads:
        sums = threads.map(
            lambda shard: _sha256(shard_file(folder, shard)) if "sha256" in markers[shard] else None, range(shards)
        )
        for shard, found in enumerate(sums):
            if found is not None and found != markers[shard]["sha256"]:
                raise CheckpointError(
                    f"{shard_file(folder, shard)} is damaged: its checksum does not match its bytes; delete "
                    f"{marker_file(folder, shard)} and run 'arl2 rollouts' again to make that shard."
                )
    bare = sum("sha256" not in marker for marker in markers)
    if bare:
        logger.warning(
            "%d of %d shards in %s have no checksum, as those of earlier versions; damage inside them is not seen.",
            bare,
            shards,
            folder,
        )


def _marked(marker: Path) -> dict[str, Any]:
    try:
        values = read_json(marker)
    except CheckpointError as error:
        raise CheckpointError(f"{marker} is damaged ({error}); delete it and run 'arl2 rollouts' again.") from error
    checksum = values.get("sha256", "0" * 64)
    whole = all(type(values.get(name, 0)) is int for name in ("bytes", "clips")) and "bytes" in values
    if not whole or not isinstance(checksum, str) or re.fullmatch("[0-9a-f]{64}", checksum) is None:
        raise CheckpointError(f"{marker} is damaged; delete it and run 'arl2 rollouts' again.")
    return values


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_datasets() -> None:
    """Raises ``ConfigError`` where the library of the shards is not installed."""
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError("Clips are kept with the package datasets, which is missing: pip install 'arl2[train]'.")


def write_small(path: Path, text: str) -> None:
    """Write a small file of a folder of clips atomically; folders above it are made.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> CheckpointError:
    """The error of a file that could not be written, such as on a full disk."""
    return CheckpointError(
        f"{path} cannot be written ({error.strerror or error}); make room or give another folder, and run the same "
        "command again: complete shards are kept."
    )
