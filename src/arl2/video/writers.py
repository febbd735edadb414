"""Video frames to a file as they come: mp4, gif, webp, raw y4m or a folder of PNGs, by the name of the output."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from arl2.errors import CheckpointError
from arl2.files.atomic import write_new
from arl2.files.locks import lock_folder
from arl2.files.plain import read_json
from arl2.files.regular import read_bytes
from arl2.video.formats import SETTINGS, VideoFileError, check_writable, format_of, numbered_pictures
from arl2.video.images import opened_image
from arl2.video.pixels import Frame
from arl2.video.writing import CutNotes, FrameWriter, VideoWriter
from arl2.video.y4m import Y4mVideo

if TYPE_CHECKING:
    from arl2.video.encoded import EncodedVideo

DEFAULT_FPS = 16


def open_video(
    path: Path | str, *, fps: int = DEFAULT_FPS, scale: int = 1, settings: Mapping[str, Any] | None = None
) -> VideoWriter:
    """A writer for ``path``, whose name says the format. Call it before the work: it checks that it can write.

    Memory does not grow with the video for mp4, gif, y4m and PNGs. An animated webp keeps its frames, compressed, until
    it is closed: the format puts its length first. Cuts are marked in y4m (``XCUT``), else noted beside the video; see
    ``arl2.video.writing.CutNotes``. One process at a time writes a file.

    Args:
        path: ``.mp4`` (H.264, in fragments of a second: what a killed run leaves can be played), ``.gif``,
            ``.webp``, ``.y4m`` (raw, for other programs), ``-`` for y4m to standard output, or a name without
            extension for a folder of PNGs, new or with an earlier video of them, which is replaced.
        fps: video frames a second.
        scale: whole number by which every pixel is enlarged.
        settings: what made the video; kept as JSON in the mp4's comment or the folder's ``settings.json``. The
            other formats have no place for it.

    Raises:
        VideoFileError: unknown extension, or a place that cannot be written to. The writer raises it too, when the
            system refuses to write more (a full disk) or another process writes the file.
        GeometryError: a scale or a frame rate below 1.
    """
    path = Path(path)
    kind = check_writable(path)
    if kind == "png folder":
        return _PngFolder(path, fps=fps, scale=scale, settings=settings)
    if kind == "y4m":
        return Y4mVideo(path, fps=fps, scale=scale)
    return _encoder()(path, kind, fps=fps, scale=scale, settings=settings)


def load_writer(path: Path) -> None:
    """Load what a file of this name needs, while there is no frame that waits for it.

    Raises:
        VideoFileError: unknown extension.
    """
    if format_of(path) not in ("png folder", "y4m"):
        _encoder()


def _encoder() -> "type[EncodedVideo]":
    # PyAV is loaded when a file needs it: importing arl2 stays light, and it takes a tenth of a second.
    from arl2.video.encoded import EncodedVideo

    return EncodedVideo


_LARGEST_PNG = 1_000_000_000  # bytes


class _PngFolder(FrameWriter):
    """``00000.png``, ``00001.png``, ... and ``settings.json`` with the frame rate."""

    def __init__(self, folder: Path, *, fps: int, scale: int, settings: Mapping[str, Any] | None) -> None:
        super().__init__(folder, fps=fps, scale=scale)
        self._metadata = {"fps": fps, "settings": dict(settings or {})}
        self._cuts = CutNotes(folder, fps=fps)
        self._lock: int | None = None

    def begin_with(self, video: Path, *, frames: int, height: int, width: int) -> bool:
        """The files of another such folder are copied."""
        files = numbered_pictures(video) if video.is_dir() else []
        if self._count or len(files) != frames or _fps_of(video) != self._fps:
            return False
        with opened_image(files[0]) as first:
            if (first.size, first.mode) != ((width, height), "RGB"):
                return False
        with self._telling():
            self._begin()
            for file in files:
                write_new(
                    self._path / f"{self._count:05d}.png", read_bytes(file, limit=_LARGEST_PNG, error=VideoFileError)
                )
                self._count += 1
        self._shape = (height, width, 3)
        return True

    def _begin(self) -> None:
        self._path.mkdir(exist_ok=True)
        there = any(self._path.iterdir())
        if there:
            check_writable(self._path)
        self._lock = lock_folder(self._path)
        if there:
            self._clear()
        self._cuts.begin()
        write_new(self._path / SETTINGS, (json.dumps(self._metadata, indent=1) + "\n").encode())

    def _put(self, frame: Frame, *, cut: bool) -> None:
        if self._lock is None:
            self._begin()
        if cut:
            self._cuts.note(self._count)
        picture = io.BytesIO()
        Image.fromarray(frame).save(picture, format="PNG")
        write_new(self._path / f"{self._count:05d}.png", picture.getvalue())

    def _clear(self) -> None:
        """Remove an earlier video; its settings last, by which a killed run's rest is known."""
        for picture in self._path.glob("*.png"):
            picture.unlink()
        (self._path / SETTINGS).unlink()

    def close(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _fps_of(folder: Path) -> object:
    """What a folder that arl2 wrote says; None for another."""
    try:
        return read_json(folder / "settings.json").get("fps")
    except CheckpointError:
        return None
