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
from arl2.evaluation.suites.suite import Subject, VideoFile
from arl2.shapes.evaluation.score import Steadiness, mean_steadiness, steadiness_of
from arl2.shapes.evaluator.oracle import Reading, read
from arl2.shapes.evaluator.scoring import Share, score_readings
from arl2.shapes.prompts.parser import complete, parse_prompt
from arl2.shapes.prompts.request import SceneRequest
from arl2.shapes.world.palette import WORLD_SIZE
from arl2.video.pixels import from_bytes
from arl2.video.reading import iterate_video


@dataclass(frozen=True)
class FolderScore:
    """Of the videos of a folder: shares by attribute, readings of the ground-truth evaluator, and steadiness."""

    videos: tuple[VideoFile, ...]
    readings: tuple[Reading, ...]
    shares: dict[str, Share]
    steadiness: Steadiness


def score_folder(folder: Subject, *, on_progress: Callable[[int], None] | None = None) -> FolderScore:
    """Read every video of a folder and score it against its prompt.

    Args:
        folder: as ``arl2.evaluation.suites.folder.folder_subject`` reads one.
        on_progress: called with the number of videos done.

    Raises:
        Arl2Error: a prompt that names nothing, or a file that cannot be read.
    """
    asked = folder.videos
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


def _request(video: VideoFile) -> SceneRequest:
    try:
        return complete(parse_prompt(video.prompt))
    except Arl2Error as error:
        raise Arl2Error(f"'{video.path}', whose prompt is '{video.prompt}': {error}") from error
