"""What a person, or a program, sees of a generation while it runs: a live line, or a JSON object a line."""

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from arl2.cli.checks import exclusive
from arl2.cli.usage import LiveProgress, memory_words, peak_gpu_memory, peak_memory
from arl2.serving.report import BlockReport as BlockReport


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The end of a command: ``interrupted`` if it was asked to stop."""

    files: Sequence[Path]
    video_frames: int
    seconds: float
    interrupted: bool
    dropped: int = 0


class Progress(ABC):
    """Told of everything that happens; a context around the work."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """The work is over, by an error too."""

    @abstractmethod
    def block(self, report: BlockReport) -> None:
        """A block is written."""

    @abstractmethod
    def finished(self, file: Path, *, before: bool = False) -> None:
        """A file of a list is whole, by this run or by one ``before``."""

    @abstractmethod
    def done(self, summary: Summary) -> None:
        """The end."""


class LiveLine(Progress):
    """One line on a terminal's standard error: block, seconds of video, speed, memory, time left; gone at the end.

    Args:
        quiet: show nothing.
        endless: the work has no end.
    """

    def __init__(self, *, quiet: bool, endless: bool = False) -> None:
        self._live = LiveProgress("block", None if endless else 1, quiet=quiet)

    def __enter__(self) -> "Progress":
        self._live.__enter__()
        return self

    def close(self) -> None:
        self._live.close()

    def block(self, report: BlockReport) -> None:
        count = f"block {report.index + 1}" + (f" of {report.blocks}" if report.blocks is not None else "")
        if report.videos > 1:
            count = f"video {report.video + 1} of {report.videos}, {count}"
        said = f"{report.video_seconds:.1f} s of video  {report.fps:.0f} video frames/s  {memory_words()}"
        said += f"  {report.dropped} dropped" if report.dropped else ""
        self._live.show(report.share, said, description=count)

    def finished(self, file: Path, *, before: bool = False) -> None:
        """The line shows the next one soon."""

    def done(self, summary: Summary) -> None:
        """The command's own last lines say it."""


class JsonLines(Progress):
    """JSON objects, one a line, on standard error: events ``block``, ``finished``, ``skipped`` and, last, ``done``."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def close(self) -> None:
        """Every line is out already."""

    def block(self, report: BlockReport) -> None:
        passed = time.perf_counter() - self._started
        self._tell(
            "block",
            index=report.index,
            blocks=report.blocks,
            file=str(report.file),
            video_frames=report.video_frames,
            video_seconds=round(report.video_seconds, 3),
            video=report.video,
            videos=report.videos,
            fps=round(report.fps, 2),
            seconds_left=round(passed * (1 - report.share) / report.share, 2) if report.share else None,
            dropped=report.dropped,
            **_memory(),
        )

    def finished(self, file: Path, *, before: bool = False) -> None:
        self._tell("skipped" if before else "finished", file=str(file))

    def done(self, summary: Summary) -> None:
        self._tell(
            "done",
            files=[str(file) for file in summary.files],
            video_frames=summary.video_frames,
            seconds=round(summary.seconds, 3),
            interrupted=summary.interrupted,
            dropped=summary.dropped,
            **_memory(),
        )

    def _tell(self, event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """What a command says while it works.

    Attributes:
        quiet: Print nothing but errors.
        json_progress: Print JSON objects, one a line, on standard error.
    """

    quiet: bool = False
    json_progress: bool = False

    def __post_init__(self) -> None:
        exclusive({"--quiet": self.quiet, "--json-progress": self.json_progress})

    def voice(self, output: Path | None = None) -> Callable[[str], None]:
        """Where lines for people go: standard error if the video takes standard output; nowhere if not wanted."""
        if self.quiet or self.json_progress:
            return lambda line: None
        stream = sys.stderr if output == Path("-") else sys.stdout
        return lambda line: print(line, file=stream)

    def progress(self, *, endless: bool = False, hidden: bool = False) -> Progress:
        """What shows the work; ``hidden`` if something else is on the terminal."""
        return JsonLines() if self.json_progress else LiveLine(quiet=self.quiet or hidden, endless=endless)


def _memory() -> dict[str, int | None]:
    return {"memory_bytes": peak_memory(), "gpu_memory_bytes": peak_gpu_memory()}
