"""Which output a name means: checked before any work, opened when the stream begins."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from arl2.errors import ConfigError
from arl2.serving.outputs.base import StreamOutput
from arl2.serving.outputs.file import FileOutput
from arl2.serving.outputs.hls import HlsOutput
from arl2.serving.outputs.hls_playlist import PLAYLIST
from arl2.serving.outputs.raw import RawOutput, is_pipe
from arl2.serving.pace import never
from arl2.video.formats import STANDARD_OUTPUT, VideoFileError, check_writable

Kind = Literal["file", "raw", "hls"]

HLS_SUFFIX = ".hls"
ACCEPTED = ".mp4, .gif, .y4m, a name that ends in .hls for a folder of segments, or - for raw y4m to standard output"


def check_output(path: Path, *, going_on: bool = False) -> Kind:
    """Check the output of a stream before any work; makes its parent folder.

    Args:
        path: as ``open_output``.
        going_on: an earlier stream goes on: nothing that is there may be overwritten.

    Raises:
        VideoFileError: another extension, a place that cannot be written to, a folder that holds other things, or, when
            a stream goes on, a file that is there already.
    """
    if path == STANDARD_OUTPUT:
        if sys.stdout.isatty():
            raise VideoFileError("Raw video came for a terminal; send it on with '| ffplay -', or give a file.")
        return "raw"
    if is_pipe(path):
        return "raw"
    if path.suffix.lower() == HLS_SUFFIX:
        _check_folder(path, going_on=going_on)
        return "hls"
    if path.suffix.lower() == ".webp":
        raise VideoFileError(
            "A .webp keeps its pictures in memory until it is closed, and a stream may have no end; "
            f"accepted are {ACCEPTED}."
        )
    if path.suffix.lower() == ".m3u8":
        raise VideoFileError(f"'{path}' would be a playlist alone; give a folder, such as '{path.stem}.hls'.")
    kind = check_writable(path)
    if going_on and path.is_file():
        raise VideoFileError(
            f"'{path}' is there already, and a file that is closed cannot be added to; give another name to the part "
            "that follows (a folder that ends in .hls is added to)."
        )
    return "raw" if kind == "y4m" else "file"


def open_output(
    path: Path,
    *,
    fps: int,
    scale: int = 1,
    settings: Mapping[str, Any] | None = None,
    keep_seconds: float | None = None,
    going_on: bool = False,
    stopped: Callable[[], bool] = never,
) -> StreamOutput:
    """The output of a stream, by its name.

    Args:
        path: ``.mp4``, ``.gif`` or a name without extension for a new folder of PNGs; ``.y4m``, a named pipe or ``-``
            (standard output) for raw video; ``NAME.hls`` for a folder of HLS.
        fps: video frames a second.
        scale: whole number by which every pixel is enlarged.
        settings: what made the video, for formats that have a place for it.
        keep_seconds: of HLS; see there.
        going_on: as ``check_output``; a folder of HLS is added to, after a cut.
        stopped: whether the person wants to stop; see ``arl2.serving.outputs.raw``.

    Raises:
        VideoFileError: as ``check_output``.
        ConfigError: ``keep_seconds`` for anything but HLS.
    """
    kind = check_output(path, going_on=going_on)
    if keep_seconds is not None and kind != "hls":
        raise ConfigError(
            f"Only segments can leave: keeping a part goes with a folder that ends in .hls, not '{path}'."
        )
    if kind == "hls":
        return HlsOutput(path, fps=fps, scale=scale, keep_seconds=keep_seconds, append=going_on)
    if kind == "raw":
        return RawOutput(path, fps=fps, scale=scale, stopped=stopped)
    return FileOutput(path, fps=fps, scale=scale, settings=settings)


def _check_folder(path: Path, *, going_on: bool) -> None:
    if path.exists() and not path.is_dir():
        raise VideoFileError(f"'{path}' is a file, but a folder of segments is to be written; choose another name.")
    if path.is_dir() and any(path.iterdir()) and not (going_on and (path / PLAYLIST).exists()):
        raise VideoFileError(f"The folder '{path}' is not empty; choose a new one for the segments.")
    parent = path if path.is_dir() else path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoFileError(f"The folder '{parent}' cannot be made ({error.strerror}); choose another.") from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise VideoFileError(f"'{path}' cannot be written: permission denied; choose another folder.")
