"""What a generation tells while it runs: one report for each block that is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """A block is written.

    Attributes:
        index: of the block in its video, from 0; ``blocks``: of the video in all, None if it has no end.
        file: that holds it.
        video_frames: in that file by now; ``video_seconds`` of them, when played.
        video: number of the video, from 0 (of several made at once, the first); ``videos``: of the command in all.
        share: of the command's work that is done, 0 to 1; None if it has no end.
        fps: video frames a second, of the machine.
        dropped: video frames that were not shown in time.
    """

    index: int
    blocks: int | None
    file: Path
    video_frames: int
    video_seconds: float
    video: int
    videos: int
    share: float | None
    fps: float
    dropped: int = 0


@runtime_checkable
class ShowsBlocks(Protocol):
    """Such as a progress line."""

    def block(self, report: BlockReport) -> None:
        """A block is written."""


@runtime_checkable
class Stop(Protocol):
    """Such as ``arl2.interrupt.StopSignal``."""

    @property
    def asked(self) -> bool:
        """Whether somebody wants the work to stop."""
        ...
