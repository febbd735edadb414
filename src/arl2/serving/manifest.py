"""The manifest beside a video: what made it, and that it is whole.

It is written in one step when the video is complete. So after a kill at any moment, a video with a manifest is whole,
and one without is made again.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin

from arl2.files.atomic import write_atomically
from arl2.video.formats import VideoFileError, writing_failed

_LARGEST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a finished video.

    Attributes:
        file: its name, in the manifest's folder.
        file_bytes: its size.
        prompt, seed: as asked.
        frames: video frames in the file.
        settings: everything else that decides what the video shows.
        model: what the person called the model.
        model_hash: of ``arl2.serving.model_hash``.
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


def manifest_path(video: Path) -> Path:
    """``NAME.json`` beside ``NAME.mp4``."""
    return video.with_suffix(".json")


def write_manifest(video: Path, manifest: Manifest) -> None:
    """Write it whole or not at all, also when the machine stops in between.

    Raises:
        VideoFileError: the system refuses, as when the disk is full.
    """
    path = manifest_path(video)
    try:
        # First the video itself: a manifest must not outlive it when the machine stops.
        with video.open("r+b") as written:
            os.fsync(written.fileno())
        write_atomically(path, (json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n").encode(), flush=True)
    except OSError as error:
        raise writing_failed(video, error) from error


def remove_manifest(video: Path) -> None:
    """Before a video is made again: from now on it is not whole.

    Raises:
        VideoFileError: the file of that name is no manifest but somebody's own.
    """
    path = manifest_path(video)
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _LARGEST else None
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not _is_manifest(values):
        raise VideoFileError(
            f"'{path}' is in the way: the manifest of '{video.name}' has this name, and the file is none; move it."
        )
    path.unlink()


def read_manifest(video: Path) -> Manifest | None:
    """The manifest of a video that is whole and still there; else None."""
    path = manifest_path(video)
    try:
        if path.stat().st_size > _LARGEST:
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not _is_manifest(values):
            return None
        manifest = Manifest(**values)
        same_file = manifest.file == video.name and manifest.file_bytes == video.stat().st_size
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if manifest.complete and same_file else None


def _is_manifest(values: dict[str, Any]) -> bool:
    kinds = {one.name: get_origin(one.type) or one.type for one in fields(Manifest)}
    return values.keys() == kinds.keys() and all(type(value) is kinds[name] for name, value in values.items())
