"""Which file formats video is written to, and the checks of every output before work begins."""

import os
import re
from pathlib import Path
from typing import Literal

from arl2.errors import Arl2Error
from arl2.files.atomic import being_written, who_writes


class VideoFileError(Arl2Error):
    """A video, or a file beside one, that cannot be written or read, or whose name says no known format."""


Format = Literal["mp4", "gif", "webp", "y4m", "png folder"]

_BY_SUFFIX: dict[str, Format] = {".mp4": "mp4", ".gif": "gif", ".webp": "webp", ".y4m": "y4m"}
SUFFIXES = tuple(_BY_SUFFIX)
ACCEPTED = f"{', '.join(SUFFIXES)}, or a folder of PNGs (a name without extension)"

STANDARD_OUTPUT = Path("-")
"""Instead of a file: raw y4m to standard output."""

# As a Path: "rtmp://host" has become "rtmp:/host". One letter is a drive of Windows.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def format_of(path: Path) -> Format:
    """Format by extension; a name without one is a folder of PNGs. Raises ``VideoFileError`` for any other."""
    if path == STANDARD_OUTPUT:
        return "y4m"
    suffix = path.suffix.lower()
    if not suffix:
        return "png folder"
    if suffix not in _BY_SUFFIX:
        raise VideoFileError(f"'{path.name}' ends in '{path.suffix}', but accepted are {ACCEPTED}; rename the output.")
    return _BY_SUFFIX[suffix]


def check_writable(path: Path, *, overwrite: bool = True) -> Format:
    """Check a video output before work begins, and make a missing parent folder.

    Args:
        path: as for ``arl2.video.writers.open_video``.
        overwrite: whether a file that exists may be replaced. A folder of PNGs is never added to.

    Returns:
        Its format.

    Raises:
        VideoFileError: an unknown extension, or as for ``check_place``.
    """
    _refuse_address(path)
    kind = format_of(path)
    if path != STANDARD_OUTPUT:
        check_place(path, "PNGs" if kind == "png folder" else kind, folder=kind == "png folder", overwrite=overwrite)
    return kind


def check_file(path: Path, suffix: str, *, overwrite: bool = True) -> None:
    """Check an output that is no video (a contact sheet, latents, a snapshot) before work begins.

    Raises:
        VideoFileError: it does not end in ``suffix``, or as for ``check_place``.
    """
    _refuse_address(path)
    if path.suffix.lower() != suffix:
        raise VideoFileError(f"'{path}' must end in {suffix}.")
    check_place(path, suffix, overwrite=overwrite)


def check_place(path: Path, what: str, *, folder: bool = False, overwrite: bool = True, added_to: bool = False) -> None:
    """Check that a file or folder can be written, and make its parent folder.

    Args:
        path: of the output.
        what: its format, for messages.
        folder: the output is a folder.
        overwrite: whether a file that exists may be replaced.
        added_to: whether a folder that holds something may be added to.

    Raises:
        VideoFileError: a folder where a file should be or the other way round, a folder that is not empty, a file that
            exists or is being written, a place without permission, or an address.
    """
    _refuse_address(path)
    if folder:
        if path.exists() and not path.is_dir():
            raise VideoFileError(f"'{path}' is a file, but a folder of {what} is to be written; choose another name.")
        if path.is_dir() and not added_to and any(path.iterdir()):
            raise VideoFileError(f"The folder '{path}' is not empty; choose a new one for the {what}.")
    elif path.is_dir():
        raise VideoFileError(f"'{path}' is a folder, but a {what} file is to be written; choose another name.")
    elif (path.exists() or path.is_symlink()) and not overwrite:
        raise VideoFileError(f"'{path}' exists; choose another name, or allow it to be overwritten.")
    parent = path if path.is_dir() else path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoFileError(f"The folder '{parent}' cannot be made ({error.strerror}); choose another.") from error
    if not os.access(parent, os.W_OK | os.X_OK) or (path.is_file() and not os.access(path, os.W_OK)):
        raise VideoFileError(f"'{path}' cannot be written: permission denied; choose another folder.")
    if being_written(path):
        raise _busy(path)


def writing_failed(path: Path, error: OSError) -> VideoFileError:
    """What to raise when the system refuses to write more of a video: what happened, and where the first part is."""
    if isinstance(error, BlockingIOError):
        return _busy(path)
    reason = error.strerror or str(error)
    if path == STANDARD_OUTPUT:
        return VideoFileError(f"Writing to standard output failed ({reason}); does its reader still run?")
    return VideoFileError(
        f"Writing failed ({reason}); the part of the video that was written is in '{path}'. Make room on the disk or "
        "choose another folder."
    )


def _busy(path: Path) -> VideoFileError:
    who = who_writes(path)
    detail = "" if who == "another process" else f" ({who})"
    return VideoFileError(f"'{path}' is being written by another process{detail}; wait for it, or choose another name.")


def _refuse_address(path: Path) -> None:
    if _ADDRESS.match(str(path)):
        raise VideoFileError(
            f"'{path}' is an address, but outputs are files, folders and pipes; to send video on, write raw y4m to "
            "standard output (-) and pipe it to another program, such as ffmpeg."
        )
