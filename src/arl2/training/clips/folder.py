"""How a folder of clips lies on disk: one index, and shards that are complete or absent.

::

    clips.json            what all clips share, and how many there are
    shards/00000.arrow    clips 0 to K - 1, a plain Arrow stream that any Arrow reader opens
    shards/00000.json     its length; written last, so a shard with this file is complete

Of the well-kept libraries for shards the choice is Hugging Face ``datasets`` over Arrow files: they are memory-mapped,
any clip is read by its number without reading others (a resumed run must see the clips that its key names), nothing in
them can run code, and it adds eight small packages. WebDataset reads tar files front to back and knows no numbers;
litdata and mosaicml-streaming bring cloud clients, and versions of torch and numpy of their own.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arl2.errors import CheckpointError, ConfigError, GeometryError
from arl2.files.atomic import write_atomically
from arl2.files.records import record_from_mapping

INDEX = "clips.json"
FORMAT = "arl2 clips 1"
_SHARDS = "shards"


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
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        return record_from_mapping(ClipIndex, values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); make the clips again in another folder.") from error


def shard_file(folder: Path, shard: int) -> Path:
    """The Arrow file of a shard."""
    return folder / _SHARDS / f"{shard:05d}.arrow"


def marker_file(folder: Path, shard: int) -> Path:
    """The file that says a shard is complete."""
    return folder / _SHARDS / f"{shard:05d}.json"


def shard_is_whole(folder: Path, shard: int) -> bool:
    """Whether a shard was completed and still has its length, by its size alone.

    Raises:
        CheckpointError: a completed shard that is shorter or longer than when it was written, or a damaged marker.
    """
    marker, file = marker_file(folder, shard), shard_file(folder, shard)
    if not marker.is_file():
        return False
    try:
        expected = int(json.loads(marker.read_text(encoding="utf-8"))["bytes"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{marker} is damaged ({error}); delete it and run 'arl2 rollouts' again.") from error
    found = file.stat().st_size if file.is_file() else 0
    if found != expected:
        raise CheckpointError(
            f"{file} has {found} of {expected} bytes: it was truncated or changed; delete {marker} and run "
            "'arl2 rollouts' again to make that shard."
        )
    return True


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
