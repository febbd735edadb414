"""Who may read a file: safetensors makes files that only their owner may, whatever the system's mask says."""

import os
import stat
import tempfile
from pathlib import Path


def open_to_readers(place: Path) -> None:
    """Give a file, or every file of weights in a folder, the mode of a new file under the system's mask.

    A file of several names is left alone: one of them is somebody else's.
    """
    if os.name != "posix":
        return
    mode = _usual_mode()
    for file in [place] if place.is_file() else sorted(place.rglob("*.safetensors")):
        if file.is_symlink() or file.stat().st_nlink > 1:
            continue
        file.chmod(mode)


def _usual_mode() -> int:
    """Read off a new file: asking for the mask would set it for a moment, in all threads."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe"
        probe.touch()
        return stat.S_IMODE(probe.stat().st_mode)
