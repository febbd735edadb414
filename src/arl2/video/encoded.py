"""The writer for formats that PyAV encodes: mp4, gif and webp."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import OutputContainer
from av.filter import Graph
from av.video.stream import VideoStream

from arl2.errors import GeometryError
from arl2.files.atomic import open_locked
from arl2.video.formats import Format, writing_failed
from arl2.video.h264 import BT601, LIMITED_RANGE
from arl2.video.passing import passage
from arl2.video.pixels import Frame
from arl2.video.writing import CutNotes, FrameWriter

# x264's macroblock tree works on 16 macroblocks at once; of narrower frames it can read what nobody wrote, and the same
# frames give other bytes.
_NARROW = 256


@dataclass(frozen=True)
class _Recipe:
    codec: str
    pixels: str
    stream: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)


_RECIPES: dict[Format, _Recipe] = {
    "mp4": _Recipe(
        "libx264",
        "yuv420p",
        {"crf": "16", "preset": "veryfast"},
        {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"},
    ),
    "gif": _Recipe("gif", "pal8"),
    "webp": _Recipe("libwebp_anim", "bgra", {"quality": "90", "loop": "0"}, {"loop": "0"}),
}


class EncodedVideo(FrameWriter):
    """Opens the file at the first frame, when the size is known; made by ``arl2.video.writers.open_video``."""

    def __init__(self, path: Path, kind: Format, *, fps: int, scale: int, settings: Mapping[str, Any] | None) -> None:
        super().__init__(path, fps=fps, scale=scale)
        self._kind, self._cuts = kind, CutNotes(path, fps=fps)
        self._comment = json.dumps(dict(settings)) if settings is not None else None
        self._output: _Output | None = None
        self._file: _File | None = None
        self._start = 0  # time of the first frame

    def _put(self, frame: Frame, *, cut: bool) -> None:
        if self._output is None:
            self._output = self._open(frame.shape[1], frame.shape[0])
        if cut:
            self._cuts.note(self._count)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = self._start + self._count, Fraction(1, self._fps)
        self._output.encode(picture)
        self._require_written()

    def begin_with(self, video: Path, *, frames: int, height: int, width: int) -> bool:
        found = passage(video, frames=frames, height=height, width=width, fps=self._fps)
        if self._kind != "mp4" or self._count or found is None:
            return False
        self._output = self._open(width, height)
        self._output.container.start_encoding()
        if self._output.stream.codec_context.extradata != found.parameter_sets:
            return False
        with found.packets() as packets:
            self._output.copy(packets)
        self._count, self._start, self._shape = frames, found.start, (height, width, 3)
        self._require_written()
        return True

    @property
    def pending_frames(self) -> int:
        """In the encoder, and in a fragment that has not ended; of a ``.webp``, which a kill loses whole, none."""
        return 0 if self._output is None or self._kind == "webp" else self._start + self._count - self._output.lasting

    def close(self) -> None:
        """Write what the encoder still holds, and the end of the file."""
        output, file, self._output = self._output, self._file, None
        if output is None or file is None:
            return
        try:
            output.close()
        finally:
            file.close()
        self._require_written()

    def _require_written(self) -> None:
        """Raise what the system said when it refused to write; once, so that closing afterwards is quiet."""
        if self._file is not None and self._file.failure is not None:
            failure, self._file.failure = self._file.failure, None
            raise writing_failed(self._path, failure) from failure

    def _open(self, width: int, height: int) -> "_Output":
        if self._kind == "mp4" and (width % 2 or height % 2):
            raise GeometryError(
                f"H.264 needs even sides, but the video is {width} x {height}; write a .gif or use an even scale."
            )
        recipe = _RECIPES[self._kind]
        self._file = _File(self._path)
        self._cuts.begin()
        container = av.open(self._file, "w", format=self._kind, options=recipe.container)
        if self._comment is not None:
            container.metadata["comment"] = self._comment
        options = recipe.stream | ({"mbtree": "0"} if self._kind == "mp4" and width < _NARROW else {})
        stream = cast(VideoStream, container.add_stream(recipe.codec, rate=self._fps, options=options))
        stream.width, stream.height, stream.pix_fmt = width, height, recipe.pixels
        stream.time_base = Fraction(1, self._fps)
        if self._kind != "mp4":
            palette = _palette_graph(width, height, self._fps) if self._kind == "gif" else None
            return _Output(container, stream, self._fps, palette)
        context = stream.codec_context
        context.gop_size = self._fps
        context.colorspace, context.color_range = BT601, LIMITED_RANGE
        return _Output(container, stream, self._fps)


class _File:
    """What FFmpeg writes into.

    A write that fails is remembered and not passed on: some muxers crash the process when they are told. From then
    on nothing more is written.
    """

    def __init__(self, path: Path) -> None:
        # Unbuffered: what a killed process had written is in the file.
        self._raw = open_locked(path)
        self.failure: OSError | None = None
        self._failed = False
        # Where FFmpeg believes to be, which a failed file no longer follows.
        self._position, self._end = 0, 0

    def write(self, data: bytes) -> int:
        """Write all of it; a system may take less at a time."""
        rest = memoryview(data)
        self._position += len(rest)
        self._end = max(self._end, self._position)
        while len(rest) and not self._failed:
            try:
                rest = rest[self._raw.write(rest) :]
            except OSError as error:
                self.failure, self._failed = error, True
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Formats that put their length first come back to it."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        if not self._failed:
            self._raw.seek(self._position)
        return self._position

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def close(self) -> None:
        """Let go of the file; a system may report only now that it could not keep what it took."""
        try:
            self._raw.close()
        except OSError as error:
            if not self._failed:
                self.failure, self._failed = error, True


@dataclass
class _Output:
    """An open file, its one stream and, for gif, the filter that chooses colours.

    ``lasting`` frames are in the file whatever happens: a fragment of mp4 is written when the key frame after it comes,
    a frame of gif when the next one does.
    """

    container: OutputContainer
    stream: VideoStream
    fps: int
    palette: Graph | None = None
    lasting: int = 0

    def encode(self, picture: av.VideoFrame) -> None:
        """Put one RGB frame in."""
        if self.palette is not None:
            self.palette.push(picture)
            self._drain(self.palette)
        elif self.stream.pix_fmt == "yuv420p":
            matched = picture.reformat(format="yuv420p", dst_colorspace=BT601, dst_color_range=LIMITED_RANGE)
            self._mux(self.stream.encode(matched))
        else:
            self._mux(self.stream.encode(picture))

    def copy(self, packets: Iterable[av.Packet]) -> None:
        """Put packets of another file in, as they are."""
        for packet in packets:
            packet.stream = self.stream
            self._mux([packet])

    def close(self) -> None:
        """Flush filter and encoder, and end the file."""
        if self.palette is not None:
            self.palette.push(None)
            self._drain(self.palette)
        self._mux(self.stream.encode(None))
        self.container.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            ends = packet.is_keyframe or self.palette is not None
            number = (
                round(packet.pts * packet.time_base * self.fps) if ends and packet.pts is not None else self.lasting
            )
            self.container.mux(packet)
            self.lasting = number

    def _drain(self, palette: Graph) -> None:
        while True:
            try:
                picture = palette.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            self._mux(self.stream.encode(cast(av.VideoFrame, picture)))


def _palette_graph(width: int, height: int, fps: int) -> Graph:
    """A filter that gives every frame its own best 256 colours, one frame at a time."""
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, fps))
    split = graph.add("split")
    generate = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=none")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(generate, 0, 0)
    split.link_to(use, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph
