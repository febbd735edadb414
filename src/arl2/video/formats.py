"""Which file formats video is written to, and the checks of every output before work begins."""

import re
import stat
from pathlib import Path
from typing import Any, Literal

from arl2.errors import Arl2Error
from arl2.files import places


class VideoFileError(Arl2Error):
    """A video, or a file beside one, that cannot be written or read, or whose name says no known format."""


Format = Literal["mp4", "gif", "webp", "y4m", "png folder"]

_BY_SUFFIX: dict[str, Format] = {".mp4": "mp4", ".gif": "gif", ".webp": "webp", ".y4m": "y4m"}
SUFFIXES = tuple(_BY_SUFFIX)
ACCEPTED = f"{', '.join(SUFFIXES)}, or a folder of PNGs (a name without extension)"

STANDARD_OUTPUT = Path("-")
"""Instead of a file: raw y4m to standard output."""

_PICTURES, SETTINGS = re.compile(r"\d{5,}\.png"), "settings.json"  # of a folder of PNGs


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


def refuse_address(path: Path) -> None:
    """Raise ``VideoFileError`` for an address, whose ending says nothing."""
    places.refuse_address(path, VideoFileError)


def check_writable(path: Path, *, overwrite: bool = True) -> Format:
    """Check a video output before work begins, and make a missing parent folder.

    Args:
        path: as for ``arl2.video.writers.open_video``.
        overwrite: whether a video that exists may be replaced. A folder with anything else in it never is.

    Returns:
        Its format.

    Raises:
        VideoFileError: an unknown extension, or as for ``check_place``.
    """
    if path == STANDARD_OUTPUT:
        return "y4m"
    refuse_address(path)
    kind = format_of(path)
    if kind == "png folder":
        check_place(path, "PNGs", folder=True, overwrite=overwrite, replaceable=is_png_video)
    else:
        check_place(path, kind, overwrite=overwrite, in_order=True)
    return kind


def is_png_video(folder: Path) -> bool:
    """Whether a folder holds a video of PNGs as it was written here, and nothing else."""
    names = {one.name for one in folder.iterdir()}
    return SETTINGS in names and all(_PICTURES.fullmatch(name) for name in names - {SETTINGS})


def numbered_pictures(folder: Path) -> list[Path]:
    """The frames of a video of PNGs that was written here, in order; other pictures beside them are none of it."""
    found = [one for one in folder.iterdir() if _PICTURES.fullmatch(one.name)]
    return sorted(found, key=lambda one: int(one.stem))


def check_file(path: Path, suffix: str, *, overwrite: bool = True) -> None:
    """Check an output that is no video (a contact sheet, latents, a snapshot) before work begins.

    Raises:
        VideoFileError: it does not end in ``suffix``, or as for ``check_place``.
    """
    refuse_address(path)
    if path.suffix.lower() != suffix:
        raise VideoFileError(f"'{path}' must end in {suffix}.")
    check_place(path, suffix, overwrite=overwrite)


def check_place(path: Path, what: str, **how: Any) -> None:
    """``arl2.files.places.check_place`` of an output of video; raises ``VideoFileError``."""
    places.check_place(path, what, error=VideoFileError, **how)


def writing_failed(path: Path, error: OSError) -> VideoFileError:
    """What to raise when the system refuses to write more of a video: what happened, and where the first part is."""
    if isinstance(error, BlockingIOError):
        return places.busy(path, VideoFileError)
    reason = error.strerror or str(error)
    if path == STANDARD_OUTPUT:
        return VideoFileError(f"Writing to standard output failed ({reason}); does its reader still run?")
    return VideoFileError(
        f"Writing failed ({reason}); the part of the video that was written is in '{path}'. Make room on the disk or "
        "choose another folder."
    )


def is_pipe(path: Path) -> bool:
    """Whether there is a named pipe of this name."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False
