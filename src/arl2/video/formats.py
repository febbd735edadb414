"""Which file formats video is written to and read from, and the checks that come before any work."""

import os
from pathlib import Path
from typing import Literal

from arl2.errors import Arl2Error


class VideoFileError(Arl2Error):
    """A video file that cannot be written or read, or whose name says no known format."""


Format = Literal["mp4", "gif", "webp", "y4m", "png folder"]

_BY_SUFFIX: dict[str, Format] = {".mp4": "mp4", ".gif": "gif", ".webp": "webp", ".y4m": "y4m"}
SUFFIXES = tuple(_BY_SUFFIX)
ACCEPTED = f"{', '.join(SUFFIXES)}, or a folder of PNGs (a name without extension)"

STANDARD_OUTPUT = Path("-")
"""Instead of a file: raw y4m to standard output."""


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


def check_writable(path: Path) -> Format:
    """Check an output before work begins, and make a missing parent folder; returns its format.

    Raises:
        VideoFileError: for an unknown extension, a folder that cannot be written to, a folder where a file should
            be or the other way round, or a PNG folder that already holds something.
    """
    kind = format_of(path)
    if path == STANDARD_OUTPUT:
        return kind
    if kind == "png folder":
        if path.exists() and not path.is_dir():
            raise VideoFileError(f"'{path}' is a file, but a folder of PNGs is to be written; choose another name.")
        if path.is_dir() and any(path.iterdir()):
            raise VideoFileError(f"The folder '{path}' is not empty; choose a new one for the PNGs.")
    elif path.is_dir():
        raise VideoFileError(f"'{path}' is a folder, but a {kind} file is to be written; choose another name.")
    parent = path if path.is_dir() else path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoFileError(f"The folder '{parent}' cannot be made ({error.strerror}); choose another.") from error
    if not os.access(parent, os.W_OK | os.X_OK) or (path.is_file() and not os.access(path, os.W_OK)):
        raise VideoFileError(f"'{path}' cannot be written: permission denied; choose another folder.")
    return kind


def writing_failed(path: Path, error: OSError) -> VideoFileError:
    """What to raise when the system refuses to write more of a video: what happened, and where the first part is."""
    reason = error.strerror or str(error)
    if path == STANDARD_OUTPUT:
        return VideoFileError(f"Writing to standard output failed ({reason}); does its reader still run?")
    return VideoFileError(
        f"Writing failed ({reason}); the part of the video that was written is in '{path}'. Make room on the disk or "
        "choose another folder."
    )
