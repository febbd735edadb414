"""Suites that measure whole videos, whether a model makes them, a folder holds them, or the truth is known."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from arl2.errors import Arl2Error
from arl2.evaluation.suites.strips import filmstrip
from arl2.evaluation.suites.suite import (
    Item,
    Load,
    Measured,
    Subject,
    Suite,
    SuiteOptions,
    VideoFile,
    prompted_items,
)
from arl2.streams.options import SamplingOptions
from arl2.video.formats import VideoFileError
from arl2.video.pixels import Frames, to_bytes
from arl2.video.reading import read_video, video_info
from arl2.video.writers import DEFAULT_FPS

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline

NOT_FINITE = "pixels that are NaN or infinite"


class ClipSuite(Suite):
    """``measure_clip`` is what a suite of this kind adds."""

    takes_videos = True
    num_frames: ClassVar[int] = 81

    @abstractmethod
    def measure_clip(self, frames: Frames, item: Item, *, fps: float) -> tuple[dict[str, float], dict[str, str]]:
        """Values by metric, and reasons of those without one."""

    def items(self, options: SuiteOptions) -> tuple[Item, ...]:
        return prompted_items(options)

    def measure_files(self, files: Sequence[tuple[VideoFile, Item]]) -> list[Measured]:
        return [self._file(video.path, item) for video, item in files]

    def _file(self, path: Path, item: Item) -> Measured:
        try:
            frames = read_video(path)
            return self.measure_video(frames, item, fps=video_info(path).fps or float(DEFAULT_FPS))
        except VideoFileError as error:
            return Measured(excluded={"": f"the file cannot be read: {without_folder(error, path)}"})
        except Arl2Error as error:
            return Measured(excluded={"": without_folder(error, path)})

    def measure_video(self, frames: Frames, item: Item, *, fps: float) -> Measured:
        values, excluded = self.measure_clip(frames, item, fps=fps)
        count, height, width, _ = frames.shape
        return Measured(values, excluded, filmstrip(frames), count, height, width, fps)

    @torch.no_grad()
    def measure_model(
        self, subject: Subject, items: Sequence[Item], options: SuiteOptions, load: Load
    ) -> list[Measured]:
        pipe = load(subject)
        num_frames = options.num_frames or self.num_frames
        made = generate(pipe, items, sampling=subject.sampling, num_frames=num_frames)
        fps = float(pipe.settings.fps)
        return [
            Measured(excluded={"": NOT_FINITE}) if frames is None else self._sampled(frames, item, fps=fps)
            for item, frames in zip(items, made, strict=True)
        ]

    def _sampled(self, frames: Frames, item: Item, *, fps: float) -> Measured:
        try:
            return self.measure_video(frames, item, fps=fps)
        except Arl2Error as error:
            return Measured(excluded={"": str(error)})


def without_folder(error: Arl2Error, path: Path) -> str:
    """What an error says, without the folder: results are the same wherever the videos lie."""
    text = str(error)
    for one in (path.resolve(), path.absolute(), path):  # FFmpeg's part of it has the whole path
        text = text.replace(str(one), path.name)
    return text


def generate(
    pipe: "ARL2Pipeline", items: Sequence[Item], *, sampling: SamplingOptions, num_frames: int
) -> list[Frames | None]:
    """The items' videos, computed together; None for one with pixels that are not finite."""
    parts: list[list[Frames]] = [[] for _ in items]
    broken = [False] * len(items)
    blocks = pipe.stream(
        [item.prompt for item in items],
        options=replace(sampling, num_frames=num_frames, seed=tuple(item.seed for item in items)),
        rewind_blocks=0,
    )
    for block in blocks:
        for index, video in enumerate(block.video):
            broken[index] |= not bool(torch.isfinite(video).all())
            parts[index].append(to_bytes(video))
    return [None if bad else np.concatenate(part) for bad, part in zip(broken, parts, strict=True)]
