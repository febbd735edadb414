"""A list of videos as progress sees it: what was made, and where it was stopped."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.cli.progress import Progress

if TYPE_CHECKING:
    from arl2.serving.jobs import JobList
    from arl2.serving.report import Stop


@dataclass
class Made:
    """What this run made: whole files, the one it was stopped in, and all video frames written."""

    finished: list[Path] = field(default_factory=list)
    partial: Path | None = None
    video_frames: int = 0


def make_videos(work: "JobList", stop: "Stop", progress: Progress) -> Made:
    """All jobs, until the end, or until a stop is asked for and the current block is written."""
    from arl2.serving.engine import BlockDone
    from arl2.serving.jobs import Finished

    made = Made()
    # Closing completes the file that a stop cuts short.
    with closing(work.run()) as events:
        for event in events:
            if isinstance(event, BlockDone):
                progress.block(event.report)
                if stop.asked and event.block.index + 1 < event.blocks:
                    made.partial = event.job.path
                    made.video_frames += event.video_frames
                    break
                continue
            progress.finished(event.job.path, before=not isinstance(event, Finished))
            if isinstance(event, Finished):
                made.finished.append(event.job.path)
                made.video_frames += event.manifest.frames
            if stop.asked:
                break
    return made
