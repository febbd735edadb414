"""The writer of raw video, YUV4MPEG2: a header line, then every frame as it is, for programs that read a pipe.

Colours are BT.601 with luma from 16 to 235, as in the mp4. Even sizes have one colour for each square of four pixels
(``C420jpeg``: in its middle), others one for every pixel (``C444``). A frame that does not continue the one before
is marked: ``XCUT`` in its header, a comment of the format, which programs that do not know it pass over.
"""

import sys
from io import FileIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from arl2.files.atomic import open_locked
from arl2.video.formats import STANDARD_OUTPUT
from arl2.video.pixels import Frame
from arl2.video.writing import FrameWriter

# BT.601, from R, G, B of 0 to 255 to Y of 16 to 235 and U, V of 16 to 240.
_MATRIX = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float32
) / np.float32(255)


@runtime_checkable
class ByteSink(Protocol):
    """Takes bytes at once, without a buffer of its own."""

    def write(self, data: memoryview, /) -> int:
        """Take the first bytes of ``data``, and say how many."""

    def close(self) -> None:
        """Let go."""


class Y4mVideo(FrameWriter):
    """Opens the file at the first frame, when the size is known; made by ``arl2.video.writers.open_video``.

    Args:
        path: the file, or ``-`` for standard output, which is left open.
        fps: video frames a second.
        scale: whole number by which every pixel is enlarged.
        sink: writes there instead; ``path`` is its name in messages.
    """

    def __init__(self, path: Path, *, fps: int, scale: int, sink: ByteSink | None = None) -> None:
        super().__init__(path, fps=fps, scale=scale)
        self._sink = sink
        self._file: ByteSink | None = None

    def _put(self, frame: Frame, *, cut: bool) -> None:
        height, width, _ = frame.shape
        halved = not (height % 2 or width % 2)
        if self._file is None:
            self._file = self._open()
            chroma = "420jpeg" if halved else "444"
            head = f"YUV4MPEG2 W{width} H{height} F{self._fps}:1 Ip A1:1 C{chroma} XCOLORRANGE=LIMITED\n"
            _write_all(self._file, head.encode())
        _write_all(self._file, b"FRAME" + (b" XCUT" if cut else b"") + b"\n" + _planes(frame, halved=halved))

    def close(self) -> None:
        """Let go of the file; every frame is complete once written."""
        file, self._file = self._file, None
        with self._telling():
            if file is not None:
                file.close()

    def _open(self) -> ByteSink:
        if self._sink is not None:
            return self._sink
        if self._path == STANDARD_OUTPUT:
            return FileIO(sys.stdout.fileno(), "wb", closefd=False)
        return open_locked(self._path)


def _write_all(file: ByteSink, data: bytes) -> None:
    """Unbuffered, so that a reader at the other end sees every frame at once; a pipe may take less at a time."""
    rest = memoryview(data)
    while len(rest):
        rest = rest[file.write(rest) :]


def _planes(frame: Frame, *, halved: bool) -> bytes:
    """Y, then U, then V, row by row."""
    luma, u, v = (frame.astype(np.float32) @ row for row in _MATRIX)
    if halved:
        u, v = (plane.reshape(len(plane) // 2, 2, -1, 2).mean(axis=(1, 3)) for plane in (u, v))
    return b"".join(_to_bytes(plane, middle) for plane, middle in ((luma, 16), (u, 128), (v, 128)))


def _to_bytes(plane: np.ndarray, middle: int) -> bytes:
    return np.rint(plane + middle).astype(np.uint8).tobytes()
