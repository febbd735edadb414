"""Clips of a person's own videos: a folder of files with captions, encoded by the model's codec."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from arl2.errors import Arl2Error, CheckpointError, ConfigError
from arl2.files.plain import json_lines_of, read_json
from arl2.files.regular import read_text
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.conditioning import video_latents
from arl2.text.interface import encode_captions
from arl2.training.clips.dataset import Clip
from arl2.training.clips.folder import write_small
from arl2.training.clips.sources import OnProgress, own_rows
from arl2.video.reading import clip_frames, count_clip_frames

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".webp", ".y4m", ".mpg", ".ts")
CAPTION_FILES = ("captions.csv", "captions.jsonl")
PLAN = "videos.json"
_LARGEST = 64_000_000  # bytes of a file of captions


@dataclass(frozen=True)
class CaptionedVideo:
    """A video file and what it shows."""

    path: Path
    caption: str


def read_captioned(folder: Path) -> tuple[CaptionedVideo, ...]:
    """The videos of a folder with their captions, by name.

    Captions are in ``captions.csv`` (columns ``file`` and ``caption``), in ``captions.jsonl`` (objects with these
    keys), or beside each video in a ``.txt`` of its name.

    Raises:
        ConfigError: no such folder, no videos in it, a video without caption, or a caption without video.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder '{folder}'; give one with videos and their captions.")
    videos = sorted(one for one in folder.iterdir() if one.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise ConfigError(f"'{folder}' holds no videos; accepted are {', '.join(VIDEO_SUFFIXES)}.")
    lists = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(lists) > 1:
        raise ConfigError(f"'{folder}' holds both {' and '.join(CAPTION_FILES)}; keep one of them.")
    captions = _listed(lists[0]) if lists else _beside(videos)
    lost = sorted(set(captions) - {video.name for video in videos})
    if lost:
        raise ConfigError(f"'{lists[0]}' names {len(lost)} videos that are not in the folder, first '{lost[0]:.80}'.")
    bare = [video.name for video in videos if not captions.get(video.name, "").strip()]
    if bare:
        where = f"'{lists[0].name}'" if lists else "a .txt beside it, or in captions.csv or captions.jsonl"
        raise ConfigError(f"{len(bare)} videos have no caption, first '{bare[0]}'; write it into {where}.")
    return tuple(CaptionedVideo(video, captions[video.name].strip()) for video in videos)


def videos_fingerprint(videos: Sequence[CaptionedVideo]) -> str:
    """A short hash of names, sizes and captions: a folder of clips is continued with the same videos only."""
    facts = [[one.path.name, one.path.stat().st_size, one.caption] for one in videos]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def plan_videos(
    videos: Sequence[CaptionedVideo],
    folder: Path,
    *,
    video_frames: int,
    fps: int,
    most: int,
    on_video: Callable[[int], None] = lambda number: None,
) -> tuple[list[int], list[str]]:
    """How many clips each video gives; every file is decoded once, and the counts are cached in ``folder``.

    Args:
        videos: as ``read_captioned`` gives them.
        folder: of the clips, created if needed.
        video_frames: of a clip.
        fps: of the model.
        most: largest number of clips of one video, one after the other from its start.
        on_video: called with the number of videos read.

    Returns:
        Clips of each video, and the names of those that are too short for one.

    Raises:
        VideoFileError: a file that cannot be read.
        ConfigError: all videos are too short.
        CheckpointError: ``folder`` cannot be written.
    """
    key = {"videos": videos_fingerprint(videos), "video_frames": video_frames, "fps": fps}
    found = _kept_counts(folder / PLAN, key, len(videos))
    if found is None:
        found = []
        for number, video in enumerate(videos):
            found.append(count_clip_frames(video.path, fps=fps))
            on_video(number + 1)
        write_small(folder / PLAN, json.dumps({**key, "frames": found}) + "\n")
    clips = [min(most, frames // video_frames) for frames in found]
    short = [video.path.name for video, count in zip(videos, clips, strict=True) if not count]
    if len(short) == len(videos):
        raise ConfigError(
            f"All {len(videos)} videos are shorter than a clip of {video_frames} video frames at {fps} a second; give "
            "longer videos, or fewer frames."
        )
    return clips, short


class VideoClips:
    """Clips cut from videos, one after the other from each one's start, each encoded as a start of its own.

    Args:
        pipe: whose codec, text part and frame size are used; frames are cropped around the centre.
        videos: the files.
        counts: clips of each, as ``plan_videos`` gives them.
        latent_frames: of every clip.
    """

    def __init__(
        self, pipe: ARL2Pipeline, videos: Sequence[CaptionedVideo], counts: Sequence[int], *, latent_frames: int
    ) -> None:
        self._pipe = pipe
        self._places = [(video, n) for video, count in zip(videos, counts, strict=True) for n in range(count)]
        self._video_frames = pipe.codec.frames_of(0, latent_frames)

    def __len__(self) -> int:
        return len(self._places)

    def clips(self, numbers: range, on_progress: OnProgress) -> Iterator[Clip]:
        """As ``ClipSource.clips``; the seed of a clip is its number.

        Raises:
            VideoFileError: a file that cannot be read.
        """
        settings = self._pipe.settings
        for number in numbers:
            video, place = self._places[number]
            start = place * self._video_frames
            frames = islice(clip_frames(video.path, fps=settings.fps), start, start + self._video_frames)
            latents = video_latents(self._pipe.codec, frames, height=settings.height, width=settings.width)[0]
            rows = encode_captions(self._pipe.text, [video.caption])[0].detach()
            yield Clip(latents, own_rows(rows), video.caption, number)
            on_progress(number + 1 - numbers.start)


def _beside(videos: Sequence[Path]) -> dict[str, str]:
    texts = {video.name: video.with_suffix(".txt") for video in videos}
    return {name: _text(path) for name, path in texts.items() if path.is_file()}


def _listed(path: Path) -> dict[str, str]:
    text = _text(path)
    captions: dict[str, str] = {}
    try:
        for line, row in enumerate(_rows(path, text), start=1):
            name, caption = row.get("file"), row.get("caption")
            if not isinstance(name, str) or not isinstance(caption, str):
                raise ConfigError(f"'{path}', entry {line}: both 'file' and 'caption' are needed, as text.")
            if name in captions:
                raise ConfigError(f"'{path}', entry {line}: '{name:.80}' has a caption already; keep one.")
            captions[name] = caption
    except (ValueError, AttributeError, csv.Error) as error:
        if isinstance(error, Arl2Error):
            raise
        raise ConfigError(f"'{path}' cannot be read ({error}); give columns, or keys, file and caption.") from error
    return captions


def _rows(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".csv":
        yield from csv.DictReader(text.splitlines())
    else:
        yield from (entry for _, entry in json_lines_of(text, path))


def _text(path: Path) -> str:
    return read_text(path, limit=_LARGEST)


def _kept_counts(path: Path, key: Mapping[str, Any], videos: int) -> list[int] | None:
    """Video frames counted before, if they are those of the same videos."""
    try:
        values = read_json(path)
    except CheckpointError:
        return None
    counts = values.pop("frames", None)
    whole = isinstance(counts, list) and len(counts) == videos and all(type(n) is int and n >= 0 for n in counts)
    return counts if whole and values == dict(key) else None
