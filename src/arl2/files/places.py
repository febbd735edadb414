"""Places of outputs, checked before any work: one rule for every file and folder that is written.

What would end the work when its result is written is found here: an address, a folder without permission, a full disk,
a file that is there already, another process that writes it.
"""

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from arl2.errors import Arl2Error, ConfigError
from arl2.files.atomic import being_written, refuse_other_kinds, who_writes

# As a Path: "rtmp://host" has become "rtmp:/host". One letter is a drive of Windows.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
Error = TypeVar("Error", bound=Arl2Error)
_PROBE = bytes(1 << 16)  # what even a small output takes


def check_place(
    path: Path,
    what: str,
    *,
    folder: bool = False,
    overwrite: bool = True,
    added_to: bool = False,
    in_order: bool = False,
    replaceable: Callable[[Path], bool] | None = None,
    error: type[Arl2Error] = ConfigError,
) -> None:
    """Check that a file or folder can be written, and make its parent folder.

    Args:
        path: of the output.
        what: its format, for messages.
        folder: the output is a folder.
        overwrite: whether what is there may be replaced.
        added_to: whether a folder that holds something may be added to.
        in_order: the file is written from its start to its end, so that a device or a pipe may take it.
        replaceable: whether a folder holds nothing but an earlier output, which ``overwrite`` may remove. None: a
            folder that holds something is never replaced.
        error: the class to raise.

    Raises:
        Arl2Error: an address, a folder where a file should be or the other way round, a folder that is not empty, a
            file that exists or is being written, a device where a whole file is written, a place without permission or
            room.
    """
    refuse_address(path, error)
    try:
        if folder:
            _check_folder(path, what, overwrite, added_to, replaceable, error)
        elif path.is_dir():
            raise error(f"'{path}' is a folder, but a {what} file is to be written; choose another name.")
        elif (path.is_file() or (path.is_symlink() and not path.exists())) and not overwrite:
            raise _there(path, error)
        elif not in_order and path.exists() and not path.is_file():
            refuse_other_kinds(path)
        parent = path if path.is_dir() else path.absolute().parent
        _check_parent(path, parent, error)
        if being_written(path):
            raise busy(path, error)
    except (OSError, ValueError) as refused:
        if isinstance(refused, Arl2Error):
            raise
        reason = refused.strerror if isinstance(refused, OSError) else str(refused)
        raise error(f"'{path}' cannot be written: {reason}; choose another place.") from refused


def check_apart(outputs: Mapping[str, Path | None], error: type[Arl2Error] = ConfigError) -> None:
    """Check that no output of a command lies in another one, or is another one: a folder holds its own files alone.

    Args:
        outputs: option or name of each, for messages, and its place; None for one that is not written.
        error: the class to raise.

    Raises:
        Arl2Error: two that are not apart.
    """
    there = [(name, path) for name, path in outputs.items() if path is not None]
    for name, path in there:
        place = path.absolute().parent.resolve() / path.name
        for other_name, other in there:
            if other_name == name:
                continue
            if place == other.absolute().parent.resolve() / other.name:
                raise error(f"{name} and {other_name} are both '{path}'; give one of them another name.")
            if other.resolve() in place.parents:
                raise error(
                    f"{name} '{path}' would lie in '{other}', the folder of {other_name}, which holds its own files "
                    "alone; choose a place outside it."
                )


def refuse_address(path: Path, error: type[Arl2Error] = ConfigError) -> None:
    """Raise ``error`` for an address."""
    if _ADDRESS.match(str(path)):
        raise error(
            f"'{path}' is an address, but outputs are files, folders and pipes; to send video on, write raw y4m to "
            "standard output (-) and pipe it to another program, such as ffmpeg."
        )


def busy(path: Path, error: type[Error]) -> Error:
    """What to raise for an output that another process is writing."""
    who = who_writes(path)
    detail = "" if who == "another process" else f" ({who})"
    return error(f"'{path}' is being written by another process{detail}; wait for it, or choose another name.")


def _check_folder(
    path: Path,
    what: str,
    overwrite: bool,
    added_to: bool,
    replaceable: Callable[[Path], bool] | None,
    error: type[Arl2Error],
) -> None:
    if path.exists() and not path.is_dir():
        raise error(f"'{path}' is a file, but a folder of {what} is to be written; choose another name.")
    if added_to or not path.is_dir() or not any(path.iterdir()):
        return
    if replaceable is None or not replaceable(path):
        raise error(f"The folder '{path}' is not empty, and holds other things; choose a new one for the {what}.")
    if not overwrite:
        raise _there(path, error)


def _there(path: Path, error: type[Arl2Error]) -> Arl2Error:
    return error(f"'{path}' is there already; choose another name, or add --overwrite (Python: overwrite=True).")


def _check_parent(path: Path, parent: Path, error: type[Arl2Error]) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise error(f"The folder '{parent}' cannot be made ({refused.strerror}); choose another.") from refused
    if not os.access(parent, os.W_OK | os.X_OK) or (path.is_file() and not os.access(path, os.W_OK)):
        raise error(f"'{path}' cannot be written: permission denied; choose another folder.")
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # a pipe or a device takes nothing of its folder
    # Rights do not say all: a read-only or full file system, or a quota, is found by writing.
    with tempfile.TemporaryFile(dir=parent) as probe:
        probe.write(_PROBE)
