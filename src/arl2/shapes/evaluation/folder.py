"""Scores of a folder of videos of the shapes world, each against its prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.files.plain import read_json_lines
from arl2.shapes.evaluation.score import Steadiness, mean_steadiness, steadiness_of
from arl2.shapes.evaluator.oracle import Reading, read
from arl2.shapes.evaluator.scoring import Share, score_readings
from arl2.shapes.prompts.parser import complete, parse_prompt
from arl2.shapes.prompts.request import SceneRequest
from arl2.shapes.world.palette import WORLD_SIZE
from arl2.video.pixels import from_bytes
from arl2.video.reading import iterate_video, video_info

MANIFEST = "manifest.jsonl"
_LARGEST = 64_000_000  # bytes
_SUFFIXES = (".mp4", ".gif", ".webp")


@dataclass(frozen=True)
class PromptedVideo:
    """A video file and the prompt it was made from."""

    path: Path
    prompt: str


@dataclass(frozen=True)
class FolderScore:
    """Of the videos of a folder: shares by attribute, readings of the ground-truth evaluator, and steadiness."""

    asked: tuple[PromptedVideo, ...]
    readings: tuple[Reading, ...]
    shares: dict[str, Share]
    steadiness: Steadiness


def score_folder(folder: Path, *, on_progress: Callable[[int], None] | None = None) -> FolderScore:
    """Read every video of a folder and score it against its prompt.

    Args:
        folder: with .mp4, .gif, .webp files or folders of PNGs. Prompts come from ``manifest.jsonl`` (lines with
            ``file`` and ``prompt``) if there is one, otherwise from each file's metadata.
        on_progress: called with the number of videos done.

    Raises:
        Arl2Error: no videos, a video without a prompt, a prompt that names nothing, or a file that cannot be read.
    """
    asked = find_videos(folder)
    requests = [_request(one) for one in asked]
    readings: list[Reading] = []
    flickers: list[float] = []
    stutters: list[float] = []
    for one in asked:
        video = read_world_video(one.path)
        try:
            readings.append(read(video))
        except Arl2Error as error:
            raise Arl2Error(f"'{one.path}': {error}") from error
        shaking, stuttering = steadiness_of(video[None], readings[-1:])
        flickers += shaking
        stutters += stuttering
        if on_progress is not None:
            on_progress(len(readings))
    shares = score_readings(readings, requests)
    return FolderScore(asked, tuple(readings), shares, mean_steadiness(flickers, stutters))


def find_videos(folder: Path) -> tuple[PromptedVideo, ...]:
    """The videos of a folder with their prompts, in the order of the manifest or of their names."""
    if not folder.is_dir():
        raise Arl2Error(f"There is no folder '{folder}'.")
    manifest = folder / MANIFEST
    if manifest.is_file():
        found = _from_manifest(manifest)
    elif any(folder.glob("*.png")):
        found = (_from_metadata(folder),)
    else:
        paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES or _is_png_folder(path)]
        found = tuple(_from_metadata(path) for path in paths)
    if not found:
        raise Arl2Error(f"'{folder}' holds no videos; accepted are {', '.join(_SUFFIXES)} and folders of PNGs.")
    return found


def read_world_video(path: Path) -> Float[Tensor, "3 frames height width"]:
    """A video in [-1, 1], resized to the size of the world frame by frame, so that memory stays small."""
    frames = []
    for frame in iterate_video(path):
        height, width, _ = frame.shape
        if height != width:
            raise Arl2Error(f"'{path}' is {width} x {height}; videos of the shapes world are square.")
        image = Image.fromarray(frame)
        if width != WORLD_SIZE:
            image = image.resize((WORLD_SIZE, WORLD_SIZE), Image.Resampling.BOX)
        frames.append(np.asarray(image))
    if not frames:
        raise Arl2Error(f"'{path}' holds no video frames.")
    return from_bytes(np.stack(frames)).to(torch.float32)


def _from_manifest(manifest: Path) -> tuple[PromptedVideo, ...]:
    found = []
    for number, entry in read_json_lines(manifest, limit=_LARGEST, error=Arl2Error):
        file, prompt = entry.get("file"), entry.get("prompt")
        if not isinstance(file, str) or not isinstance(prompt, str) or "\0" in file:
            raise Arl2Error(f"'{manifest}', line {number}: each line needs a file and a prompt, as text.")
        found.append(PromptedVideo(manifest.parent / file, prompt))
    return tuple(found)


def _from_metadata(path: Path) -> PromptedVideo:
    prompt = video_info(path).settings.get("prompt")
    if not isinstance(prompt, str):
        raise Arl2Error(
            f"'{path}' has no prompt in its metadata; write {MANIFEST} into the folder, a line "
            '{"file": ..., "prompt": ...} for each video.'
        )
    return PromptedVideo(path, prompt)


def _request(video: PromptedVideo) -> SceneRequest:
    try:
        return complete(parse_prompt(video.prompt))
    except Arl2Error as error:
        raise Arl2Error(f"'{video.path}': {error}") from error


def _is_png_folder(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.png"))
