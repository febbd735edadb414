"""The suite ``vbench``: VBench's own dimensions, by its package, for videos of any prompt.

Its weights are its own business: it looks for them in its cache and fetches what is missing. Six dimensions take videos
of any prompt; the other ten are for VBench's own prompts and are run with its own program.
"""

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from arl2.errors import Arl2Error, ConfigError
from arl2.evaluation.suites.clips import NOT_FINITE, generate
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
        return _judged([NOT_FINITE if one is None else (one, float(pipe.settings.fps)) for one in made])

    def measure_files(self, files: Sequence[tuple[VideoFile, Item]]) -> list[Measured]:
        videos: list[tuple[Frames, float] | str] = []
        for file, _ in files:
            try:
                videos.append((read_video(file.path), video_info(file.path).fps or float(DEFAULT_FPS)))
            except VideoFileError as error:
                videos.append(f"the file cannot be read: {str(error).replace(str(file.path), file.path.name)}")
        return _judged(videos)


def _judged(videos: Sequence[tuple[Frames, float] | str]) -> list[Measured]:
    """What VBench says of videos; of one that is a text, the text."""
    with tempfile.TemporaryDirectory(prefix="arl2-vbench-") as place:
        folder = Path(place) / "videos"
        folder.mkdir()
        for number, video in enumerate(videos):
            if not isinstance(video, str):
                with open_video(folder / f"{number:05d}.mp4", fps=max(1, round(video[1]))) as writer:
                    writer.write(video[0])
        there = any(folder.iterdir())
        scores = _scores(folder, Path(place) / "results") if there else {}
    found = []
    for number, video in enumerate(videos):
        if isinstance(video, str):
            found.append(Measured(excluded={"": video}))
            continue
        frames, fps = video
        count, height, width, _ = frames.shape
        values = scores.get(f"{number:05d}.mp4", {})
        missing = {one.name: "VBench gave no value" for one in VBenchSuite.metrics if one.name not in values}
        found.append(Measured(values, missing, filmstrip(frames), count, height, width, fps))
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
