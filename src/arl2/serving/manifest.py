"""What is known of finished videos: a manifest beside each video of a list, or one listing of a folder.

Both are written in one step when a video is complete. So after a kill at any moment, a video with a manifest is whole,
and one without is made again; a listing names whole videos only.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arl2.errors import Arl2Error
from arl2.files.atomic import write_atomically
from arl2.files.locks import locked_folder
from arl2.files.plain import read_json, read_json_lines
from arl2.files.records import record_from_mapping
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.model_hash import parts_hash
from arl2.video.formats import VideoFileError, writing_failed

LISTING = "manifest.jsonl"
_LARGEST, _LARGEST_LISTING = 1_000_000, 64_000_000  # bytes


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a finished video.

    Attributes:
        file: its name, in the manifest's folder.
        file_bytes: its size.
        prompt, seed: as requested.
        frames: video frames in the file.
        settings: everything else that decides what the video shows.
        model: what the person called the model.
        model_hash: of ``model_hash``.
        latents_sha256: of the latents, frame by frame in float32; equal runs have equal ones.
        seconds: that it took.
        arl2: version.
        complete: true; a manifest that says otherwise counts for nothing.
    """

    file: str
    file_bytes: int
    prompt: str
    seed: int
    frames: int
    settings: dict[str, Any]
    model: str
    model_hash: str
    latents_sha256: str
    seconds: float
    arl2: str
    complete: bool = True


def model_hash(pipe: ARL2Pipeline) -> str:
    """Which model made a video: the hash that manifests and snapshots carry, 64 hexadecimal digits."""
    return parts_hash(pipe.transformer, pipe.codec)


def manifest_path(video: Path) -> Path:
    """``NAME.json`` beside ``NAME.mp4``."""
    return video.with_suffix(".json")


def write_manifest(video: Path, manifest: Manifest) -> None:
    """Write it whole or not at all, also when the machine stops in between.

    Raises:
        VideoFileError: the system refuses, as when the disk is full.
    """
    try:
        # First the video itself: a manifest must not outlive it when the machine stops.
        with video.open("r+b") as written:
            os.fsync(written.fileno())
        content = json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n"
        write_atomically(manifest_path(video), content.encode(), flush=True)
    except OSError as error:
        raise writing_failed(video, error) from error


def remove_manifest(video: Path) -> None:
    """Before a video is made again: from now on it is not whole.

    Raises:
        VideoFileError: the file of that name is not a manifest.
    """
    path = manifest_path(video)
    if not path.exists():
        return
    if _parsed(path) is None:
        raise VideoFileError(
            f"'{path}' is in the way: the manifest of '{video.name}' has this name, and the file is none; move it."
        )
    path.unlink()


def read_manifest(video: Path) -> Manifest | None:
    """The manifest of a video that is whole and still there; else None."""
    manifest = _parsed(manifest_path(video))
    if manifest is None or not manifest.complete or manifest.file != video.name or not video.is_file():
        return None
    return manifest if manifest.file_bytes == video.stat().st_size else None


def _parsed(path: Path) -> Manifest | None:
    try:
        return record_from_mapping(Manifest, read_json(path, limit=_LARGEST))
    except Arl2Error:
        return None


def read_listing(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder's ``manifest.jsonl``, by file; none if it has none.

    Raises:
        VideoFileError: one that cannot be read; the line is named.
    """
    path = folder / LISTING
    if not path.exists():
        return {}
    entries = {}
    for number, entry in read_json_lines(path, limit=_LARGEST_LISTING, error=VideoFileError):
        if not isinstance(entry.get("file"), str):
            raise VideoFileError(
                f"'{path}', line {number}: this is no manifest entry; correct it or choose another folder."
            )
        entries[entry["file"]] = entry
    return entries


def write_listing(folder: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Add entries (each with ``file``) to a folder's ``manifest.jsonl``; an entry of the same file is replaced.

    Raises:
        VideoFileError: the one that is there cannot be read, or the system refuses to write.
    """
    try:
        # Another process may add to it at the same time.
        with locked_folder(folder, wait=True):
            listed = read_listing(folder) | {entry["file"]: dict(entry) for entry in entries}
            content = "".join(json.dumps(entry) + "\n" for entry in listed.values())
            write_atomically(folder / LISTING, content.encode())
    except OSError as error:
        raise writing_failed(folder / LISTING, error) from error
