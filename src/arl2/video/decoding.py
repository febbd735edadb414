"""Video files decoded by PyAV, every frame as players show it: turned, with square pixels, in the range of SDR."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from arl2.errors import Arl2Error
from arl2.files.regular import first_line
from arl2.video.formats import VideoFileError
from arl2.video.images import require_file, require_size
from arl2.video.pixels import Frame

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Containers that hold their video themselves. Others (playlists, lists of files) could name addresses to fetch.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,gif,apng,yuv4mpegpipe,ivf,mxf,h264,hevc,obu,dv"
)
FALLBACK_RATE = 16
# Of ITU-T H.273.
_PQ, _HLG, _BT2020 = 16, 18, 9
# ITU-R BT.2408: diffuse white of HDR, in cd/m2, and the peak that HLG is shown with.
_DIFFUSE_WHITE, _HLG_PEAK = 203.0, 1000.0
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)


@dataclass(frozen=True)
class ShownFrame:
    """A frame that is shown from ``start`` on, for ``duration`` seconds if none follows; ``take`` converts it."""

    start: Fraction
    duration: Fraction
    take: Callable[[], Frame]


@contextmanager
def opened_video(path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """A container and its first video stream; damage that is met inside becomes a sentence.

    Raises:
        VideoFileError: no such file, no video in it, or one that is broken.
    """
    # PyAV is loaded when a file needs it.
    import av

    require_file(path, "video")
    try:
        # The path is absolute: else a name could be taken for an address.
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        with av.open(str(path.absolute()), options=options) as container:
            if not container.streams.video:
                others = " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise VideoFileError(f"'{path}' holds no video, only {others}; give another file.")
            yield container, container.streams.video[0]
    except Arl2Error:
        raise
    except Exception as error:  # of FFmpeg, and of PyAV for values that it does not expect
        raise VideoFileError(f"'{path}' cannot be read as a video ({first_line(error)}); is it complete?") from error


def rate_of(stream: "VideoStream") -> Fraction | None:
    """Video frames a second, where the file says."""
    rate = stream.average_rate or stream.guessed_rate
    return Fraction(rate) if rate else None


def decoded_frames(path: Path) -> Iterator[ShownFrame]:
    """All frames of a file in the order of their times.

    Raises:
        VideoFileError: as ``opened_video``, or larger than accepted.
    """
    with opened_video(path) as (container, stream):
        rate = rate_of(stream) or Fraction(FALLBACK_RATE)
        aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        before: Fraction | None = None
        origin = Fraction(0)
        for picture in container.decode(stream):
            require_size(path, *_square(picture.width, picture.height, aspect))
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
            yield ShownFrame(start, duration, partial(_displayed, picture, aspect))
            before = start


def _displayed(picture: "VideoFrame", aspect: Fraction) -> Frame:
    frame = picture.to_ndarray(format="rgb24")
    if picture.color_trc in (_PQ, _HLG):
        frame = _to_sdr(frame, hlg=picture.color_trc == _HLG, wide=picture.color_primaries == _BT2020)
    size = _square(picture.width, picture.height, aspect)
    if size != (picture.width, picture.height):
        frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    return np.ascontiguousarray(_turned(frame, picture))


def _square(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """The size with square pixels, where a stored one is ``aspect`` times as wide as high; no side shrinks."""
    return (round(width * aspect), height) if aspect >= 1 else (width, round(height / aspect))


def _turned(frame: Frame, picture: "VideoFrame") -> UInt8[np.ndarray, "tall wide 3"]:
    """Turned and mirrored by the file's display matrix, to the nearest quarter: telephones film as they are held."""
    data: Any = picture.side_data.get("DISPLAYMATRIX")
    if data is None:
        return frame
    # Where the unit vectors to the right (a, b) and down (c, d) of the stored picture point to.
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), dtype=np.int32).tolist()
    if abs(a) >= abs(b):
        return frame[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return frame.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]


def _to_sdr(frame: Frame, *, hlg: bool, wide: bool) -> Frame:
    """HDR (ITU-R BT.2100) to SDR: diffuse white becomes white, what is brighter is clipped.

    Args:
        frame: the signal.
        hlg: hybrid log-gamma; otherwise PQ.
        wide: with the primaries of BT.2020; otherwise those of BT.709.
    """
    signal = np.arange(256, dtype=np.float64) / 255
    if hlg:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)[frame]
        # The system gamma of 1.2 works on luminance.
        light = _HLG_PEAK * scene * np.maximum(scene @ _BT2020_LUMINANCE, 1e-9)[..., None] ** 0.2
    else:
        powered = signal ** (32 / 2523)
        nits = 10_000 * (np.maximum(powered - 0.8359375, 0) / (18.8515625 - 18.6875 * powered)) ** (16384 / 2610)
        light = nits.astype(np.float32)[frame]
    light = light / _DIFFUSE_WHITE
    if wide:
        light = light @ _BT2020_TO_BT709.T
    return np.rint(255 * np.clip(light, 0, 1) ** (1 / 2.4)).astype(np.uint8)
