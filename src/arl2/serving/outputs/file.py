"""A stream into a video file (mp4, gif) or a folder of PNGs.

None of these formats can say, while it is being written, that the picture jumps: the mp4 is in fragments, so that what
a killed run leaves can be played, and its table of contents, where chapters would stand, is written first. So cuts are
noted beside the video, a JSON object a line: ``{"video_frame": 93, "seconds": 5.8125}``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arl2.serving.outputs.base import Pictures, StreamOutput
from arl2.video.formats import writing_failed
from arl2.video.writers import open_video


def cuts_path(video: Path) -> Path:
    """``NAME.mp4.cuts.jsonl`` beside ``NAME.mp4``; there is one only if there are cuts."""
    return video.with_name(f"{video.name}.cuts.jsonl")


class FileOutput(StreamOutput):
    """Writes a file through ``arl2.video.writers.open_video``; arguments and errors as there."""

    def __init__(self, path: Path, *, fps: int, scale: int = 1, settings: Mapping[str, Any] | None = None) -> None:
        self._path, self._fps, self._count, self._cut = path, fps, 0, False
        self._writer = open_video(path, fps=fps, scale=scale, settings=settings)
        try:
            # Of an earlier video of this name.
            cuts_path(path).unlink(missing_ok=True)
        except OSError as error:
            raise writing_failed(cuts_path(path), error) from error

    def write(self, frames: Pictures) -> None:
        if self._cut and len(frames):
            self._note_cut()
        self._writer.write(frames)
        self._count += len(frames)

    def mark_cut(self) -> None:
        self._cut = self._count > 0

    def close(self) -> None:
        self._writer.close()

    def _note_cut(self) -> None:
        self._cut = False
        note = {"video_frame": self._count, "seconds": round(self._count / self._fps, 6)}
        try:
            with cuts_path(self._path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(note) + "\n")
        except OSError as error:
            raise writing_failed(cuts_path(self._path), error) from error
