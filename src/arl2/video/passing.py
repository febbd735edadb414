"""Passing a video that arl2 wrote through: its packets go into a new file as they are, and ours follow.

That is possible where one decoder takes both: the same codec, size, rate and parameter sets, as two runs of one version
of this program have them. The frames then have the same bits however often a video is extended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.files.plain import parse_json
from arl2.video.decoding import opened_video
from arl2.video.formats import VideoFileError

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video.stream import VideoStream


# Of fewer, x264 sets the times otherwise.
_FEWEST = 8
_START = b"\0\0\0\1"


@dataclass(frozen=True)
class Passage:
    """A video whose packets can be copied.

    Attributes:
        path: of it.
        parameter_sets: of its H.264, as an encoder gives them; that of the frames that follow must have the same.
        start: time of the first frame, in frames: what the encoder needs to put frames in another order.
    """

    path: Path
    parameter_sets: bytes
    start: int

    @contextmanager
    def packets(self) -> Iterator["Iterator[Packet]"]:
        """As an encoder gives them, in the order in which they are decoded; errors as for ``opened_video``."""
        import av

        with opened_video(self.path) as (container, stream):

            def copies() -> "Iterator[Packet]":
                for stored in _packets(container, stream):
                    packet = av.Packet(_with_start_codes(bytes(stored)))
                    packet.pts, packet.dts, packet.time_base = stored.pts, stored.dts, stored.time_base
                    packet.duration, packet.is_keyframe = stored.duration, stored.is_keyframe
                    yield packet

            yield copies()


def passage(path: Path, *, frames: int, height: int, width: int, fps: int) -> Passage | None:
    """A video to be passed through; None for one of others, of another size, rate or length, or short.

    Args:
        path: of the video.
        frames: video frames that are wanted of it, all of them.
        height, width, fps: of the new video.
    """
    if frames < _FEWEST or path.suffix.lower() != ".mp4" or not path.is_file():
        return None
    try:
        with opened_video(path) as (container, stream):
            context = stream.codec_context
            same = (context.name, context.height, context.width, context.pix_fmt) == ("h264", height, width, "yuv420p")
            if not (same and context.extradata and len(container.streams) == 1 and _is_ours(container)):
                return None
            times = sorted((packet.pts or 0) * packet.time_base * fps for packet in _packets(container, stream))
            start = int(times[0]) if times else 0
            if times != list(range(start, start + frames)):
                return None
            return Passage(path, _parameter_sets(context.extradata), start)
    except (VideoFileError, IndexError):
        return None  # reading its frames says what is wrong


def _is_ours(container: "InputContainer") -> bool:
    try:
        return "arl2" in parse_json(container.metadata.get("comment", ""))
    except (ValueError, TypeError):
        return False


def _parameter_sets(stored: bytes) -> bytes:
    """Of an mp4 (``avcC``, ISO/IEC 14496-15), with start codes as an encoder gives them."""
    found, place = b"", 5
    for mask in (0x1F, 0xFF):  # sequences, then pictures; first their number
        count, place = stored[place] & mask, place + 1
        for _ in range(count):
            length = int.from_bytes(stored[place : place + 2])
            found += _START + stored[place + 2 : place + 2 + length]
            place += 2 + length
    return found


def _with_start_codes(stored: bytes) -> bytes:
    """A packet of an mp4 that arl2 wrote, whose units have their length in four bytes before them."""
    units, place = [], 0
    while place < len(stored):
        length = int.from_bytes(stored[place : place + 4])
        units.append(stored[place + 4 : place + 4 + length])
        place += 4 + length
    return b"".join(_START + unit for unit in units)


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet]":
    # The last one is empty: it ends the decoder.
    return (packet for packet in container.demux(stream) if packet.size and packet.pts is not None)
