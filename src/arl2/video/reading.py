"""Video files back to frames: what ``arl2.video.writers`` writes, and other people's mp4, gif, webp and y4m."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence, UnidentifiedImageError

from arl2.video.formats import VideoFileError, format_of

if TYPE_CHECKING:
    from av.container import InputContainer

Frame = UInt8[np.ndarray, "height width 3"]

# A frame larger than this is refused before it is decoded: a small file can claim any size.
MAX_SIDE = 8192
# What PyAV reads, and what it calls the format. Named, and with an absolute path: else a file could pose as a playlist,
# or its name as an address.
_DEMUXERS = {"mp4": "mp4", "y4m": "yuv4mpegpipe"}
# Nor may one page of an animation claim to stand for any number of frames.
_LONGEST_STILL = 10_000


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about itself, before any frame is decoded.

    ``fps`` is None where the file does not say; ``settings`` are those that ``open_video`` was given, or empty.
    """

    width: int
    height: int
    fps: float | None
    settings: dict[str, Any]


def video_info(path: Path | str) -> VideoInfo:
    """Size, frame rate and settings; raises ``VideoFileError`` for what cannot be read."""
    path = _existing(Path(path))
    kind = format_of(path)
    if kind in _DEMUXERS:
        return _stream_info(path, _DEMUXERS[kind])
    if kind == "png folder":
        with _picture(_pngs(path)[0]) as picture:
            facts = _json(_read_text(path / "settings.json"))
            fps, settings = facts.get("fps"), facts.get("settings")
            return VideoInfo(
                picture.width,
                picture.height,
                float(fps) if isinstance(fps, int | float) else None,
                settings if isinstance(settings, dict) else {},
            )
    with _picture(path) as picture:
        durations = _durations(picture)
        frames = sum(_times_shown(duration, durations) for duration in durations)
        fps = 1000 * frames / sum(durations) if sum(durations) else None
        return VideoInfo(picture.width, picture.height, fps, {})


def iterate_video(path: Path | str) -> Iterator[Frame]:
    """RGB frames one by one, in memory that does not grow with the video.

    Raises:
        VideoFileError: the file is missing, of an unknown format, damaged, or larger than ``MAX_SIDE`` a side.
    """
    path = _existing(Path(path))
    kind = format_of(path)
    if kind in _DEMUXERS:
        yield from _stream_frames(path, _DEMUXERS[kind])
    elif kind == "png folder":
        for png in _pngs(path):
            with _picture(png) as picture:
                yield np.array(picture.convert("RGB"))
    else:
        with _picture(path) as picture:
            durations = _durations(picture)
            for page, duration in zip(ImageSequence.Iterator(picture), durations, strict=True):
                frame = np.array(page.convert("RGB"))
                for _ in range(_times_shown(duration, durations)):
                    yield frame


def read_video(path: Path | str, *, max_frames: int | None = None) -> UInt8[np.ndarray, "frames height width 3"]:
    """All frames, or the first ``max_frames``; raises ``VideoFileError`` as ``iterate_video`` does."""
    frames = []
    for frame in iterate_video(path):
        frames.append(frame)
        if len(frames) == max_frames:
            break
    if not frames:
        raise VideoFileError(f"'{path}' holds no video frames.")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise VideoFileError(f"The frames of '{path}' differ in size; a video has one size.")
    return np.stack(frames)


def _stream_info(path: Path, demuxer: str) -> VideoInfo:
    # PyAV is loaded when a file needs it.
    import av

    try:
        with _opened(path, demuxer) as container:
            stream = container.streams.video[0]
            require_size(path, stream.width, stream.height)
            rate = stream.average_rate or stream.guessed_rate
            comment = container.metadata.get("comment", "")
            return VideoInfo(stream.width, stream.height, float(rate) if rate else None, _json(comment))
    except (av.FFmpegError, IndexError) as error:
        raise VideoFileError(f"'{path}' cannot be read as a video ({error}); is it complete?") from error


def _stream_frames(path: Path, demuxer: str) -> Iterator[Frame]:
    import av

    try:
        with _opened(path, demuxer) as container:
            stream = container.streams.video[0]
            require_size(path, stream.width, stream.height)
            for picture in container.decode(stream):
                yield picture.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError) as error:
        raise VideoFileError(f"'{path}' cannot be read as a video ({error}); is it complete?") from error


def _opened(path: Path, demuxer: str) -> "InputContainer":
    import av

    return av.open(str(path.absolute()), format=demuxer)


def _picture(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise VideoFileError(f"'{path}' cannot be read as a picture ({error}).") from error
    try:
        require_size(path, picture.width, picture.height)
    except VideoFileError:
        picture.close()
        raise
    return picture


def _durations(picture: Image.Image) -> list[float]:
    """How long each page of an animation is shown, in milliseconds."""
    durations = []
    for page in ImageSequence.Iterator(picture):
        page.load()
        durations.append(float(page.info.get("duration", 0)))
    return durations


def _times_shown(duration: float, durations: list[float]) -> int:
    """Video frames that a page stands for: encoders merge equal neighbours into one page that is shown longer."""
    shortest = min((d for d in durations if d > 0), default=0.0)
    return min(max(round(duration / shortest), 1), _LONGEST_STILL) if shortest else 1


def _pngs(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.png"))
    if not found:
        raise VideoFileError(f"The folder '{folder}' holds no .png files.")
    return found


def _existing(path: Path) -> Path:
    if not path.exists():
        raise VideoFileError(f"There is no '{path}'.")
    return path


def require_size(path: Path, width: int, height: int) -> None:
    """Raise ``VideoFileError`` for a picture that claims more than ``MAX_SIDE`` pixels a side, or none."""
    if not 0 < max(width, height) <= MAX_SIDE:
        raise VideoFileError(f"'{path}' claims {width} x {height} pixels; at most {MAX_SIDE} a side are accepted.")


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(text: str) -> dict[str, Any]:
    """Settings of a file; another program's comment is none."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
