"""Videos of any size and length side by side: one video, a labelled filmstrip, and how far each is from the first."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from arl2.errors import ConfigError
from arl2.video.pixels import Frame
from arl2.video.reading import clip_frames, iterate_video, video_info
from arl2.video.sheet import LabelledClip
from arl2.video.writers import DEFAULT_FPS, open_video

_GAP, _LABEL, _FONT = 4, 22, 13
_LARGEST_HEIGHT, _SMALLEST_WIDTH = 1080, 96
# A video that has ended shows its last frame, this much nearer to white.
_ENDED = 0.6


@dataclass(frozen=True)
class Video:
    """One of the videos, with its label and what its file says."""

    path: Path
    label: str
    width: int
    height: int
    fps: float


@dataclass(frozen=True)
class Distance:
    """Of a video from the first one, frame by frame as they are stored.

    Attributes:
        label: of the video.
        mean: absolute difference of pixel values, of 255.
        psnr: in dB; infinite for equal videos.
        first_different: video frame; None for equal videos.
        frames: compared ones.
        why_not: why there is no distance; empty if there is.
    """

    label: str
    mean: float | None = None
    psnr: float | None = None
    first_different: int | None = None
    frames: int = 0
    why_not: str = ""


def open_videos(paths: Sequence[Path]) -> tuple[Video, ...]:
    """The videos, with labels that tell them apart.

    Raises:
        ConfigError: fewer than two.
        VideoFileError: one that cannot be read.
    """
    if len(paths) < 2:
        raise ConfigError(f"Got {len(paths)} video{'s' * (len(paths) != 1)} to compare; give two or more.")
    labels = _labels(paths)
    videos = []
    for path, label in zip(paths, labels, strict=True):
        info = video_info(path)
        videos.append(Video(path, label, info.width, info.height, info.fps or float(DEFAULT_FPS)))
    return tuple(videos)


def write_side_by_side(videos: Sequence[Video], output: Path, *, shown: int = 8) -> list[LabelledClip]:
    """Write one video with all of them at the rate of the first, scaled to the height of the tallest.

    The shorter ones keep their last frame, paler. Memory does not grow with the length.

    Returns:
        For a filmstrip, ``shown`` video frames of each, at the same moments: evenly spaced over the longest.
    """
    fps = max(1, round(videos[0].fps))
    tall = min(max(video.height for video in videos), _LARGEST_HEIGHT)
    tall += tall % 2
    widths = [max(1, round(video.width * tall / video.height)) for video in videos]
    cells = [max(width, _SMALLEST_WIDTH) for width in widths]
    total = sum(cells) + _GAP * (len(videos) - 1)
    total += total % 2
    lengths = [sum(1 for _ in clip_frames(video.path, fps=fps)) for video in videos]
    chosen = np.unique(np.linspace(0, max(lengths) - 1, shown).round().astype(int)).tolist()
    clips: list[list[Frame]] = [[] for _ in videos]
    header = _header([video.label for video in videos], cells, total)
    with open_video(output, fps=fps) as writer:
        for number, frames in enumerate(_together([clip_frames(video.path, fps=fps) for video in videos])):
            canvas = np.full((_LABEL + tall, total, 3), 255, np.uint8)
            canvas[:_LABEL] = header
            left = 0
            for index, (frame, ended) in enumerate(frames):
                picture = _scaled(frame, widths[index], tall)
                if number in chosen:
                    clips[index].append(picture)
                if ended:
                    picture = (picture + _ENDED * (255 - picture.astype(np.float32))).astype(np.uint8)
                canvas[_LABEL:, left : left + widths[index]] = picture
                left += cells[index] + _GAP
            writer.write(canvas[None])
    return [(video.label, np.stack(clip)) for video, clip in zip(videos, clips, strict=True)]


def distances(videos: Sequence[Video]) -> tuple[Distance, ...]:
    """How far every video is from the first."""
    return tuple(_distance(videos[0], video) for video in videos[1:])


def _distance(first: Video, video: Video) -> Distance:
    if (first.width, first.height) != (video.width, video.height):
        return Distance(
            video.label,
            why_not=f"{video.width} x {video.height} pixels, and the first has {first.width} x {first.height}",
        )
    absolute = squared = 0.0
    count = 0
    different: int | None = None
    for one, other in itertools.zip_longest(iterate_video(first.path), iterate_video(video.path)):
        if one is None or other is None:
            longer = "the first video" if other is None else "it"
            return Distance(video.label, why_not=f"{longer} is longer, after {count} video frames")
        change = one.astype(np.int16) - other.astype(np.int16)
        absolute += float(np.abs(change).mean())
        squared += float(np.square(change, dtype=np.int32).mean())
        if different is None and change.any():
            different = count
        count += 1
    psnr = math.inf if squared == 0 else 10 * math.log10(255**2 / (squared / count))
    return Distance(video.label, absolute / count, psnr, different, count)


def _together(sources: Sequence[Iterator[Frame]]) -> Iterator[list[tuple[Frame, bool]]]:
    """Frames of all, and whether each has ended; until the last one has."""
    last: list[Frame | None] = [None] * len(sources)
    while True:
        found: list[tuple[Frame, bool]] = []
        going = False
        for index, source in enumerate(sources):
            frame = next(source, None)
            going |= frame is not None
            shown = last[index] if frame is None else frame
            assert shown is not None  # a video has a frame at least
            last[index] = shown
            found.append((shown, frame is None))
        if not going:
            return
        yield found


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names of the files; with their folders where two are the same."""
    names = [path.stem if path.suffix else path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [name if names.count(name) == 1 else f"{name} ({number + 1})" for number, name in enumerate(names)]


def _scaled(frame: Frame, width: int, height: int) -> UInt8[np.ndarray, "tall wide 3"]:
    if frame.shape[:2] == (height, width):
        return frame
    whole = height % frame.shape[0] == 0 and width % frame.shape[1] == 0
    how = Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(frame).resize((width, height), how))


def _header(labels: Sequence[str], cells: Sequence[int], total: int) -> Frame:
    picture = Image.new("RGB", (total, _LABEL), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT)
    left = 0
    for label, width in zip(labels, cells, strict=True):
        told = label
        while len(told) > 1 and font.getlength(told) > width - 4:
            told = f"{told.rstrip('…')[:-1]}…"
        draw.text((left + 2, 3), told, fill="black", font=font)
        left += width + _GAP
    return np.asarray(picture)
