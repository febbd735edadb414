"""Other people's videos as frames at a steady rate, one by one: whatever the container, codec and time stamps.

A frame of the result is the one whose time stamp lies nearest, so slow videos repeat frames and fast ones lose some.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from arl2.video.formats import VideoFileError
from arl2.video.reading import Frame, iterate_video, require_size, video_info

if TYPE_CHECKING:
    from av import VideoFrame

# Containers that hold their video themselves. Others (playlists, lists of files) could name addresses to fetch.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,gif,apng,yuv4mpegpipe,ivf,mxf,h264,hevc,obu,dv"
)
# What PyAV cannot decode in time order, but arl2.video.reading can.
_READ_AS_PICTURES = (".webp",)
_LONGEST_GAP = 600
_FALLBACK_RATE = 16


@dataclass(frozen=True)
class _Shown:
    """A frame that is shown from ``start`` on, for ``duration`` seconds if none follows; ``take`` converts it."""

    start: Fraction
    duration: Fraction
    take: Callable[[], Frame]


def clip_frames(path: Path, *, fps: int) -> Iterator[Frame]:
    """RGB frames at ``fps`` a second, in memory that does not grow with the video.

    Args:
        path: a video file of any usual container, or a folder of PNGs.
        fps: video frames a second of the result.

    Raises:
        VideoFileError: no such file, no video in it, or one that is broken or larger than accepted.
    """
    for shown in _at_rate(_source(path), path, fps):
        yield shown.take()


def count_clip_frames(path: Path, *, fps: int) -> int:
    """How many frames ``clip_frames`` gives: the file is decoded (headers are often wrong), nothing is converted.

    Raises:
        VideoFileError: as ``clip_frames``.
    """
    return sum(1 for _ in _at_rate(_source(path), path, fps))


def check_clip(path: Path) -> None:
    """Read the first frame; raises ``VideoFileError`` as ``clip_frames`` does."""
    source = _source(path)
    if next(source, None) is None:
        raise VideoFileError(f"'{path}' holds no video frames.")


def _source(path: Path) -> Iterator[_Shown]:
    if not path.exists():
        raise VideoFileError(f"There is no '{path}'.")
    if path.is_dir() or path.suffix.lower() in _READ_AS_PICTURES:
        return _pictures(path)
    return _decoded(path)


def _pictures(path: Path) -> Iterator[_Shown]:
    rate = Fraction(video_info(path).fps or _FALLBACK_RATE).limit_denominator(1000)
    for index, frame in enumerate(iterate_video(path)):
        yield _Shown(index / rate, 1 / rate, partial(_same, frame))


def _decoded(path: Path) -> Iterator[_Shown]:
    # PyAV is loaded when a file needs it.
    import av

    try:
        # The path is absolute: else a name could be taken for an address.
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        with av.open(str(path.absolute()), options=options) as container:
            if not container.streams.video:
                others = " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise VideoFileError(f"'{path}' holds no video, only {others}; give another file.")
            stream = container.streams.video[0]
            rate = Fraction(stream.average_rate or stream.guessed_rate or _FALLBACK_RATE)
            before: Fraction | None = None
            origin = Fraction(0)
            for picture in container.decode(stream):
                require_size(path, picture.width, picture.height)
                if picture.pts is None or picture.time_base is None:
                    start = Fraction(0) if before is None else before + 1 / rate
                else:
                    start = picture.pts * picture.time_base - origin
                    if before is None:
                        origin, start = start, Fraction(0)
                # Broken files go back in time: those frames have no place.
                if before is not None and start <= before:
                    continue
                duration = picture.duration * picture.time_base if picture.duration and picture.time_base else 1 / rate
                yield _Shown(start, duration, partial(_upright, picture))
                before = start
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise VideoFileError(f"'{path}' cannot be read as a video ({error}); is it complete?") from error


def _same(frame: Frame) -> Frame:
    return frame


def _upright(picture: "VideoFrame") -> Frame:
    frame = picture.to_ndarray(format="rgb24")
    # Telephones film as they are held and note how to turn the picture.
    return np.ascontiguousarray(np.rot90(frame, round(picture.rotation / 90) % 4))


def _at_rate(source: Iterator[_Shown], path: Path, fps: int) -> Iterator[_Shown]:
    """The nearest frame of ``source`` for each of the times 0, 1/fps, 2/fps, ..."""
    count = 0
    current: _Shown | None = None
    for following in source:
        if current is not None:
            if following.start - current.start > _LONGEST_GAP:
                raise VideoFileError(
                    f"The time stamps of '{path}' jump by {float(following.start - current.start):.0f} seconds; at "
                    f"most {_LONGEST_GAP} are accepted. Repair or cut the video first."
                )
            while Fraction(count, fps) <= (current.start + following.start) / 2:
                yield current
                count += 1
        current = following
    if current is None:
        raise VideoFileError(f"'{path}' holds no video frames.")
    end = current.start + min(current.duration, Fraction(_LONGEST_GAP))
    while count == 0 or Fraction(count, fps) < end:
        yield current
        count += 1
