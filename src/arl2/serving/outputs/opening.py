"""Which output a name means: checked before any work, opened when the stream begins."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from arl2.errors import ConfigError
from arl2.serving.outputs.hls_playlist import PLAYLIST, check_playlist, is_hls_video, remove_unlisted_start
from arl2.serving.pace import never
from arl2.video.formats import STANDARD_OUTPUT, VideoFileError, check_place, check_writable, is_pipe

if TYPE_CHECKING:
    from arl2.video.writing import VideoWriter

Kind = Literal["file", "raw", "hls"]

HLS_SUFFIX = ".hls"
ACCEPTED = ".mp4, .gif, .y4m, a name that ends in .hls for a folder of segments, or - for raw y4m to standard output"


def check_output(path: Path, *, going_on: bool = False, overwrite: bool = True) -> Kind:
    """Check the output of a stream before any work; makes its parent folder.

    Args:
        path: as ``open_output``.
        going_on: an earlier stream continues: nothing that is there may be overwritten.
        overwrite: whether a video that exists may be replaced.

    Raises:
        VideoFileError: another extension, a place that cannot be written to, a folder that holds other things, or a
            file that is there already and may not be replaced; a playlist to be continued that does not fit its files.
    """
    if path == STANDARD_OUTPUT:
        if sys.stdout.isatty():
            raise VideoFileError("Raw video would go to a terminal; pipe it on with '| ffplay -', or give a file.")
        return "raw"
    if is_pipe(path):
        return "raw"
    if path.suffix.lower() == HLS_SUFFIX:
        remove_unlisted_start(path)
        added_to = going_on and (path / PLAYLIST).exists()
        check_place(path, "segments", folder=True, added_to=added_to, overwrite=overwrite, replaceable=is_hls_video)
        if added_to:
            check_playlist(path)
        return "hls"
    if path.suffix.lower() == ".webp":
        raise VideoFileError(
            f"A .webp is kept in memory until it is closed, and a stream may have no end; accepted are {ACCEPTED}."
        )
    if path.suffix.lower() == ".m3u8":
        raise VideoFileError(f"'{path}' would be a playlist alone; give a folder, such as '{path.stem}.hls'.")
    if going_on and path.is_file():
        raise VideoFileError(
            f"'{path}' exists, and a closed file cannot be added to; give another name to the part that follows (a "
            "folder that ends in .hls is added to)."
        )
    return "raw" if check_writable(path, overwrite=overwrite) == "y4m" else "file"


def open_output(
    path: Path,
    *,
    fps: int,
    scale: int = 1,
    settings: Mapping[str, Any] | None = None,
    keep_seconds: float | None = None,
    going_on: bool = False,
    overwrite: bool = False,
    stopped: Callable[[], bool] = never,
) -> "VideoWriter":
    """The output of a stream, by its name.

    Args:
        path: ``.mp4``, ``.gif`` or a name without extension for a new folder of PNGs; ``.y4m``, a named pipe or ``-``
            (standard output) for raw video; ``NAME.hls`` for a folder of HLS.
        fps: video frames a second.
        scale: whole number by which every pixel is enlarged.
        settings: what made the video, for formats that have a place for it.
        keep_seconds: of HLS; see there.
        going_on: as ``check_output``; a folder of HLS is added to, after a cut.
        overwrite: whether a folder of an earlier stream may be replaced; a file always is.
        stopped: whether the person wants to stop; see ``arl2.serving.outputs.raw``.

    Raises:
        VideoFileError: as ``check_output``.
        ConfigError: ``keep_seconds`` for anything but HLS.
    """
    kind = check_output(path, going_on=going_on, overwrite=overwrite or path.suffix.lower() != HLS_SUFFIX)
    if keep_seconds is not None and kind != "hls":
        raise ConfigError(f"Only a folder that ends in .hls can keep a part of the video, and '{path}' is none.")
    # What writes is imported here: checking a name needs no torch.
    if kind == "hls":
        from arl2.serving.outputs.hls import HlsOutput

        return HlsOutput(path, fps=fps, scale=scale, keep_seconds=keep_seconds, append=going_on, overwrite=overwrite)
    if kind == "raw":
        from arl2.serving.outputs.raw import RawOutput

        return RawOutput(path, fps=fps, scale=scale, stopped=stopped)
    from arl2.video.writers import open_video

    return open_video(path, fps=fps, scale=scale, settings=settings)
