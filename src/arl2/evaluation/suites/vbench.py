"""The suite ``vbench``: VBench's own dimensions, by its package, for videos of any prompt.

Its weights are its own business: it looks for them in its cache and fetches what is missing. Six dimensions take videos
of any prompt; the other ten are for VBench's own prompts and are run with its own program.
"""

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arl2.errors import Arl2Error, ConfigError
from arl2.evaluation.suites.clips import NOT_FINITE, generate, without_folder
from arl2.evaluation.suites.strips import filmstrip
from arl2.evaluation.suites.suite import (
    Item,
    Load,
    Measured,
    Metric,
    Subject,
    Suite,
    SuiteOptions,
    VideoFile,
    prompted_items,
)
from arl2.files.plain import read_json_value
from arl2.files.regular import first_line
from arl2.video.formats import VideoFileError
from arl2.video.pixels import Frames
from arl2.video.reading import read_video, video_info
from arl2.video.writers import DEFAULT_FPS, open_video

_LARGEST = 64_000_000  # bytes of VBench's results
_NAME = "arl2"
# Kinds of files that VBench reads itself.
_READ = (".mp4", ".gif")


class VBenchSuite(Suite):
    """VBench's dimensions that take any prompt; needs the package ``vbench`` and its weights."""

    name = "vbench"
    about = "VBench's own dimensions for videos of any prompt, by its package"
    primary = "subject_consistency"
    takes_videos = True
    metrics = (
        Metric("subject_consistency", "VBench, 0 to 1", "high"),
        Metric("background_consistency", "VBench, 0 to 1", "high"),
        Metric("motion_smoothness", "VBench, 0 to 1", "high"),
        Metric("dynamic_degree", "VBench: share of videos that move", is_share=True),
        Metric("aesthetic_quality", "VBench, 0 to 1", "high"),
        Metric("imaging_quality", "VBench, 0 to 100 for one video", "high"),
    )

    def check(self, options: SuiteOptions, subjects: Sequence[Subject]) -> None:
        super().check(options, subjects)
        if importlib.util.find_spec("vbench") is None:
            raise ConfigError(
                "The suite 'vbench' needs VBench's package and its weights; run: pip install vbench. The suite 'video' "
                "needs neither."
            )

    def items(self, options: SuiteOptions) -> tuple[Item, ...]:
        return prompted_items(options)

    @torch.no_grad()
    def measure_model(
        self, subject: Subject, items: Sequence[Item], options: SuiteOptions, load: Load
    ) -> list[Measured]:
        pipe = load(subject)
        num_frames = options.num_frames or pipe.settings.num_frames
        made = generate(pipe, items, sampling=subject.sampling, num_frames=num_frames)
        fps = float(pipe.settings.fps)
        return _judged([NOT_FINITE if one is None else _Clip(one, fps) for one in made])

    def measure_files(self, files: Sequence[tuple[VideoFile, Item]]) -> list[Measured]:
        videos: list[_Clip | str] = []
        for file, _ in files:
            try:
                frames, fps = read_video(file.path), video_info(file.path).fps or float(DEFAULT_FPS)
                videos.append(_Clip(frames, fps, file.path if file.path.suffix.lower() in _READ else None))
            except VideoFileError as error:
                videos.append(f"the file cannot be read: {without_folder(error, file.path)}")
        return _judged(videos)


@dataclass(frozen=True)
class _Clip:
    """A video, and the file that VBench can read it from; None: one has to be written."""

    frames: Frames
    fps: float
    file: Path | None = None

    def put(self, folder: Path, stem: str) -> str:
        """A link to the file itself, as another encoding has other scores, or a new file; its name."""
        name = stem + (".mp4" if self.file is None else self.file.suffix.lower())
        if self.file is not None:
            (folder / name).symlink_to(self.file.absolute())
        else:
            with open_video(folder / name, fps=max(1, round(self.fps))) as writer:
                writer.write(self.frames)
        return name


def _judged(videos: Sequence[_Clip | str]) -> list[Measured]:
    """What VBench says of videos; of one that is a text, the text."""
    with tempfile.TemporaryDirectory(prefix="arl2-vbench-") as place:
        folder = Path(place) / "videos"
        folder.mkdir()
        names = {
            number: video.put(folder, f"{number:05d}")
            for number, video in enumerate(videos)
            if not isinstance(video, str)
        }
        scores = _scores(folder, Path(place) / "results") if names else {}
    found = []
    for number, video in enumerate(videos):
        if isinstance(video, str):
            found.append(Measured(excluded={"": video}))
            continue
        count, height, width, _ = video.frames.shape
        values = scores.get(names[number], {})
        missing = {one.name: "VBench gave no value" for one in VBenchSuite.metrics if one.name not in values}
        found.append(Measured(values, missing, filmstrip(video.frames), count, height, width, video.fps))
    return found


def _scores(videos: Path, results: Path) -> dict[str, dict[str, float]]:
    """By file and dimension."""
    package = importlib.import_module("vbench")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    information = Path(os.fspath(package.__file__ or "")).parent / "VBench_full_info.json"
    try:
        judge = package.VBench(device, str(information), str(results))
        judge.evaluate(
            videos_path=str(videos),
            name=_NAME,
            dimension_list=[metric.name for metric in VBenchSuite.metrics],
            mode="custom_input",
        )
    except Exception as error:  # another program's: a missing weight, a video it cannot take
        raise Arl2Error(
            f"VBench could not evaluate the videos ({type(error).__name__}: {first_line(error)}); see that its weights "
            "are there, then run the command again."
        ) from error
    content = read_json_value(results / f"{_NAME}_eval_results.json", limit=_LARGEST, error=Arl2Error)
    scores: dict[str, dict[str, float]] = {}
    for dimension, outcome in content.items() if isinstance(content, dict) else ():
        for one in outcome[1] if isinstance(outcome, list) and len(outcome) > 1 else ():
            _add(scores, dimension, one)
    return scores


def _add(scores: dict[str, dict[str, float]], dimension: str, one: Any) -> None:
    """One entry of VBench's results: the path of a video, and its value as a number or a truth value."""
    if isinstance(one, dict) and isinstance(one.get("video_path"), str):
        value = one.get("video_results")
        if isinstance(value, int | float):
            scores.setdefault(Path(one["video_path"]).name, {})[dimension] = float(value)
