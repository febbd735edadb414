"""What every writer of video is, and what those have in common that take one frame after the other."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from arl2.errors import GeometryError
from arl2.video.formats import writing_failed
from arl2.video.pixels import Frame, Frames, check_scale, enlarge, require_same_size


class VideoWriter(ABC):
    """Takes video frames and cuts as they come. Use it as a context: leaving it, by an error too, completes it.

    ``note`` is a sentence for people about what is in the output already, where it continues another.
    """

    note: str | None = None

    @abstractmethod
    def write(self, frames: Frames) -> None:
        """Append RGB frames.

        Raises:
            VideoFileError: the system refuses to write more; what was written until then stays.
            GeometryError: frames of another size than the first.
        """

    @abstractmethod
    def mark_cut(self) -> None:
        """The next frame does not continue the one before. Before the first frame this does nothing."""

    @abstractmethod
    def close(self) -> None:
        """Complete the output. Closing twice does no harm."""

    def flush(self) -> None:  # noqa: B027  # most writers hold nothing back
        """Make everything that was written visible to readers, as far as the format allows."""

    def begin_with(self, video: Path, *, frames: int, height: int, width: int) -> bool:
        """Begin with all frames of a video as they are stored, before any other; False if that cannot be done.

        Args:
            video: a file that arl2 wrote.
            frames, height, width: its length and size.
        """
        return False

    def place(self, video_frame: int, stream: str) -> None:  # noqa: B027  # most formats number no frames
        """What is written next begins at this frame of a stream; ``stream`` tells streams and prompts apart."""

    @property
    def pending_frames(self) -> int:
        """Frames that were written, but that a kill at this moment would lose."""
        return 0

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FrameWriter(VideoWriter):
    """A writer of one frame after the other, all enlarged alike and of one size.

    Args:
        path: of the output; its name in messages.
        fps: video frames a second.
        scale: whole number by which every pixel is enlarged.

    Raises:
        GeometryError: a scale or a frame rate below 1.
    """

    def __init__(self, path: Path, *, fps: int, scale: int) -> None:
        if scale < 1 or fps < 1:
            raise GeometryError(f"Got scale={scale} and fps={fps}, but both are whole numbers from 1.")
        self._path, self._fps, self._scale = path, fps, scale
        self._count, self._cut = 0, False
        self._shape: tuple[int, ...] | None = None

    def write(self, frames: Frames) -> None:
        check_scale(frames.shape[1], frames.shape[2], self._scale)
        for frame in enlarge(frames, self._scale):
            require_same_size(frame.shape, self._shape or frame.shape)
            with self._telling():
                self._put(frame, cut=self._cut)
            self._shape, self._cut = frame.shape, False
            self._count += 1

    def mark_cut(self) -> None:
        self._cut = self._cut or self._count > 0

    @abstractmethod
    def _put(self, frame: Frame, *, cut: bool) -> None:
        """Write frame number ``self._count``; an ``OSError`` is told by the caller."""

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say in one sentence what the system refuses."""
        try:
            yield
        except OSError as error:
            raise writing_failed(self._path, error) from error


def cuts_path(video: Path) -> Path:
    """``NAME.mp4.cuts.jsonl`` beside ``NAME.mp4``; it is there only if there are cuts."""
    return video.with_name(f"{video.name}.cuts.jsonl")


class CutNotes:
    """Cuts of a video whose format cannot mark them, a JSON object a line: ``{"video_frame": 93, "seconds": 5.8125}``.

    A fragmented mp4, which a killed run leaves playable, has its table of contents, where chapters would stand, first.
    Those of an earlier video of the same name are removed when the new one begins.
    """

    def __init__(self, video: Path, *, fps: int) -> None:
        self._path, self._fps = cuts_path(video), fps

    def begin(self) -> None:
        """Forget those of an earlier video; once this process alone writes the video of this name."""
        self._path.unlink(missing_ok=True)

    def note(self, video_frame: int) -> None:
        """There is a cut before this frame."""
        line = json.dumps({"video_frame": video_frame, "seconds": round(video_frame / self._fps, 6)})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
