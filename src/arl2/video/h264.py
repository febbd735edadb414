"""H.264 for live viewers: frames in, packets out at once, a key frame wherever one is wanted.

Packets are Annex-B, as browsers' WebCodecs and MPEG-TS take them, and every key frame carries its parameter sets: a
viewer can begin at any of them. :mod:`arl2.video.fragments` makes mp4 of the same packets, so that a stream is encoded
once however it is watched.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from arl2.errors import GeometryError
from arl2.video.pixels import Frame

if TYPE_CHECKING:
    from av import Packet

# Matrix and range are written into the stream: left out, players guess them from the frame's size.
BT601, LIMITED_RANGE = 6, 1
# No frame waits in the encoder for later ones.
_OPTIONS = {"preset": "veryfast", "crf": "17", "tune": "zerolatency", "forced-idr": "1"}
_SPS = 7  # kind of the unit that says profile and size
_START_CODE = re.compile(rb"\x00{2,}\x01")


class H264Encoder:
    """One video of one size.

    Args:
        width, height: of the frames, even.
        fps: video frames a second.

    Raises:
        GeometryError: an odd side.
    """

    def __init__(self, width: int, height: int, fps: int) -> None:
        # PyAV is loaded when it is needed: importing arl2 stays light.
        import av

        if width % 2 or height % 2:
            raise GeometryError(f"H.264 needs even sides, but the video is {width} x {height}; use an even scale.")
        self.width, self.height, self.fps = width, height, fps
        self._time_base = Fraction(1, fps)
        context = av.VideoCodecContext.create("libx264", "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.framerate, context.time_base = Fraction(fps), self._time_base
        context.colorspace, context.color_range = BT601, LIMITED_RANGE
        context.options = dict(_OPTIONS)
        self._context = context

    def encode(self, frame: Frame, number: int, *, key: bool = False) -> "list[Packet]":
        """The packets that are ready, with their frames' numbers as times.

        Args:
            frame: RGB, ``[height, width, 3]``.
            number: of the frame, growing.
            key: whether it is a key frame; others are where the encoder thinks best.

        Raises:
            GeometryError: a frame of another size.
        """
        import av
        from av.video.frame import PictureType

        if frame.shape[:2] != (self.height, self.width):
            height, width = frame.shape[:2]
            raise GeometryError(
                f"Got a frame of {width} x {height} in a video of {self.width} x {self.height}; begin another encoder."
            )
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = rgb.reformat(format="yuv420p", dst_colorspace=BT601, dst_color_range=LIMITED_RANGE)
        picture.pts, picture.time_base = number, self._time_base
        picture.pict_type = PictureType.I if key else PictureType.NONE
        return list(self._context.encode(picture))

    def flush(self) -> "list[Packet]":
        """What is left at the end; nothing is encoded afterwards."""
        return list(self._context.encode(None))


def nal_units(annex_b: bytes) -> Iterator[bytes]:
    """The units of a packet, without the start codes between them; the low five bits of the first byte say the kind."""
    codes = list(_START_CODE.finditer(annex_b))
    ends = [*(code.start() for code in codes[1:]), len(annex_b)]
    for code, end in zip(codes, ends, strict=False):  # without any code there is an end all the same
        if unit := annex_b[code.end() : end]:
            yield unit


def codec_of(data: bytes) -> str | None:
    """As browsers ask for it, such as ``avc1.64000c``: from the parameter sets of a key frame; None: it has none."""
    found = [unit for unit in nal_units(data) if unit[0] & 31 == _SPS]
    return f"avc1.{found[0][1:4].hex()}" if found else None
