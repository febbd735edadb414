"""Video files back to frames: as they are stored, or at a steady rate, whatever the container and its time stamps."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from arl2.errors import CheckpointError
from arl2.files.plain import parse_json, read_json
from arl2.files.regular import first_line
from arl2.video.decoding import FALLBACK_RATE, ShownFrame, decoded_frames, opened_video, rate_of
from arl2.video.formats import VideoFileError, numbered_pictures
from arl2.video.images import frame_of, opened_image, read_image
from arl2.video.pixels import Frame, Frames

# Animations that are read page by page: their encoders merge equal neighbours into one page that is shown longer.
_ANIMATIONS = (".gif", ".webp")
# Nor may one page claim to stand for any number of frames.
_LONGEST_STILL = 10_000
_LONGEST_GAP = 600  # seconds
_FASTEST = 1000  # video frames a second


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about itself.

    ``fps`` is None where the file does not say; ``settings`` are those that ``open_video`` was given, or empty.
    """

    width: int
    height: int
    fps: float | None
    settings: dict[str, Any]


def video_info(path: Path | str) -> VideoInfo:
    """Size as displayed, frame rate and settings; raises ``VideoFileError`` for what cannot be read."""
    path = _existing(path)
    if path.is_dir():
        first, (fps, settings) = read_image(_pngs(path)[0]), _folder_metadata(path)
        return VideoInfo(first.width, first.height, fps, settings)
    if path.suffix.lower() in _ANIMATIONS:
        with opened_image(path) as picture:
            durations = _durations(picture)
            frames = sum(_times_shown(duration, durations) for duration in durations)
            fps = 1000 * frames / sum(durations) if sum(durations) else None
            return VideoInfo(picture.width, picture.height, fps, {})
    with opened_video(path) as (container, stream):
        rate, settings = rate_of(stream), _json(container.metadata.get("comment", ""))
    frame = next(_frames(path)).take()
    return VideoInfo(frame.shape[1], frame.shape[0], float(rate) if rate else None, settings)


def iterate_video(path: Path | str) -> Iterator[Frame]:
    """RGB frames one by one, in memory that does not grow with the video.

    Args:
        path: a video file of any usual container, or a folder of PNGs.

    Raises:
        VideoFileError: no such file, no video in it, or one that is broken or larger than accepted.
    """
    for shown in _frames(_existing(path)):
        yield shown.take()


def read_video(path: Path | str, *, max_frames: int | None = None) -> Frames:
    """All frames, or the first ``max_frames``; raises ``VideoFileError`` as ``iterate_video`` does."""
    frames = []
    for frame in iterate_video(path):
        frames.append(frame)
        if len(frames) == max_frames:
            break
    if any(frame.shape != frames[0].shape for frame in frames):
        raise VideoFileError(f"The frames of '{path}' differ in size; a video has one size.")
    return np.stack(frames)


def clip_frames(path: Path, *, fps: int) -> Iterator[Frame]:
    """RGB frames at ``fps`` a second, each the one whose time stamp lies nearest: slow videos repeat frames.

    Raises:
        VideoFileError: as ``iterate_video``.
    """
    for shown in _at_rate(_frames(_existing(path)), path, fps):
        yield shown.take()


def count_clip_frames(path: Path, *, fps: int, most: int | None = None) -> int:
    """How many frames ``clip_frames`` gives: the file is decoded (headers are often wrong), nothing is converted.

    Raises:
        VideoFileError: as ``clip_frames``; more than ``most`` frames, beyond which nothing is decoded.
    """
    found = 0
    for _ in _at_rate(_frames(_existing(path)), path, fps):
        found += 1
        if most is not None and found > most:
            raise VideoFileError(f"'{path}' has more than {most:,} frames at {fps} a second; give a shorter video.")
    return found


def check_clip(path: Path) -> None:
    """Decode the first frame; raises ``VideoFileError`` as ``clip_frames`` does."""
    next(_frames(_existing(path)))


def _frames(path: Path) -> Iterator[ShownFrame]:
    """At least one frame, or an error."""
    if path.is_dir():
        source = _png_frames(path)
    elif path.suffix.lower() in _ANIMATIONS:
        source = _pages(path)
    else:
        source = decoded_frames(path)
    first = next(source, None)
    if first is None:
        raise VideoFileError(f"'{path}' holds no video frames.")
    yield first
    yield from source


def _png_frames(folder: Path) -> Iterator[ShownFrame]:
    rate = Fraction(_folder_metadata(folder)[0] or FALLBACK_RATE).limit_denominator(1000)
    for index, png in enumerate(_pngs(folder)):
        yield ShownFrame(index / rate, 1 / rate, partial(_png, png))


def _png(path: Path) -> Frame:
    return np.array(read_image(path))


def _pages(path: Path) -> Iterator[ShownFrame]:
    with opened_image(path) as picture:
        durations = _durations(picture)
        each = [_times_shown(duration, durations) for duration in durations]
        seconds = Fraction(sum(durations)).limit_denominator(1000) / (1000 * sum(each))
        seconds = seconds or Fraction(1, FALLBACK_RATE)
        index = 0
        for page, times in zip(ImageSequence.Iterator(picture), each, strict=True):
            frame = frame_of(page, path)
            for _ in range(times):
                yield ShownFrame(index * seconds, seconds, partial(np.copy, frame))
                index += 1


def _durations(picture: Image.Image) -> list[float]:
    """How long each page of an animation is shown, in milliseconds."""
    durations = []
    for page in ImageSequence.Iterator(picture):
        page.load()
        durations.append(float(page.info.get("duration", 0)))
    return durations


def _times_shown(duration: float, durations: list[float]) -> int:
    """Video frames that a page stands for."""
    shortest = min((d for d in durations if d > 0), default=0.0)
    return min(max(round(duration / shortest), 1), _LONGEST_STILL) if shortest else 1


def _at_rate(source: Iterator[ShownFrame], path: Path, fps: int) -> Iterator[ShownFrame]:
    """The nearest frame of ``source`` for each of the times 0, 1/fps, 2/fps, ..."""
    count = 0
    current = next(source)
    for following in source:
        if following.start - current.start > _LONGEST_GAP:
            raise VideoFileError(
                f"The time stamps of '{path}' jump by {float(following.start - current.start):.0f} seconds; at most "
                f"{_LONGEST_GAP} are accepted. Repair or cut the video first."
            )
        while Fraction(count, fps) <= (current.start + following.start) / 2:
            yield current
            count += 1
        current = following
    end = current.start + min(current.duration, Fraction(_LONGEST_GAP))
    while count == 0 or Fraction(count, fps) < end:
        yield current
        count += 1


def _pngs(folder: Path) -> list[Path]:
    ours = _folder_metadata(folder)[0] is not None
    found = numbered_pictures(folder) if ours else sorted(folder.glob("*.png"))
    if not found:
        raise VideoFileError(f"The folder '{folder}' holds no .png files.")
    return found


def _existing(path: Path | str) -> Path:
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise VideoFileError(f"There is no '{str(path)[-200:]}' ({first_line(error)[:80]}).") from error
    return path


def _folder_metadata(folder: Path) -> tuple[float | None, dict[str, Any]]:
    """Frame rate and settings that the writer of a folder of PNGs left in it."""
    path = folder / "settings.json"
    try:
        metadata = read_json(path) if path.is_file() else {}
    except CheckpointError:
        metadata = {}  # another program's file of that name
    fps, settings = metadata.get("fps"), metadata.get("settings")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < _FASTEST:
        fps = None
    return None if fps is None else float(fps), settings if isinstance(settings, dict) else {}


def _json(text: str) -> dict[str, Any]:
    """Settings of a file; another program's comment is none."""
    try:
        values = parse_json(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
