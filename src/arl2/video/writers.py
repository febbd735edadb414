"""Video frames to a file as they come: mp4, gif, webp, raw y4m or a folder of PNGs, by the name of the output."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from arl2.errors import GeometryError
from arl2.video.formats import check_writable, format_of, writing_failed
from arl2.video.pixels import enlarge
from arl2.video.writing import VideoWriter, require_same_size
from arl2.video.y4m import Y4mVideo

if TYPE_CHECKING:
    from arl2.video.encoded import EncodedVideo

DEFAULT_FPS = 16


def open_video(
    path: Path | str, *, fps: int = DEFAULT_FPS, scale: int = 1, settings: Mapping[str, Any] | None = None
) -> VideoWriter:
    """A writer for ``path``, whose name says the format. Call it before the work: it checks that it can write.

    Memory does not grow with the video for mp4, gif, y4m and PNGs. An animated webp keeps its frames, compressed, until
    it is closed: the format puts its length first.

    Args:
        path: ``.mp4`` (H.264, in fragments of a second: what a killed run leaves can be played), ``.gif``,
            ``.webp``, ``.y4m`` (raw, for other programs), ``-`` for y4m to standard output, or a name without
            extension for a new folder of PNGs.
        fps: video frames a second.
        scale: whole number by which every pixel is enlarged.
        settings: what made the video; kept as JSON in the mp4's comment or the folder's ``settings.json``. The
            other formats have no place for it.

    Raises:
        VideoFileError: unknown extension, or a place that cannot be written to. The writer raises it too, when the
            system refuses to write more (a full disk); what was written until then stays.
        GeometryError: a scale or a frame rate below 1.
    """
    if scale < 1 or fps < 1:
        raise GeometryError(f"scale={scale} and fps={fps} came, but both are whole numbers from 1.")
    path = Path(path)
    kind = check_writable(path)
    if kind == "png folder":
        return _PngFolder(path, fps, scale, settings)
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


class _PngFolder(VideoWriter):
    """``00000.png``, ``00001.png``, ... and ``settings.json`` with the frame rate."""

    def __init__(self, folder: Path, fps: int, scale: int, settings: Mapping[str, Any] | None) -> None:
        self._folder, self._scale, self._count = folder, scale, 0
        self._shape: tuple[int, ...] | None = None
        facts = {"fps": fps, "settings": dict(settings or {})}
        try:
            folder.mkdir(exist_ok=True)
            (folder / "settings.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise writing_failed(folder, error) from error

    def write(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> None:
        for frame in enlarge(frames, self._scale):
            self._shape = self._shape or frame.shape
            require_same_size(frame.shape, self._shape)
            try:
                Image.fromarray(frame).save(self._folder / f"{self._count:05d}.png")
            except OSError as error:
                raise writing_failed(self._folder, error) from error
            self._count += 1

    def close(self) -> None:
        """Nothing to do: every PNG is complete once written."""
