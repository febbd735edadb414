"""``arl2 generate --prompts-file``: a folder of videos that is resumed where an earlier run was interrupted."""

import argparse
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.errors import ConfigError
from arl2.serving.prompts_file import VideoRequest, read_image_folder, read_prompts_file

if TYPE_CHECKING:
    from arl2.cli.progress import Progress
    from arl2.interrupt import StopSignal
    from arl2.serving.jobs import JobList


def run_prompts_file(arguments: argparse.Namespace) -> int:
    """Make what is not finished yet, and say what it took; 130 if it was interrupted."""
    from arl2.serving.jobs import JobList, plan_jobs

    folder = _checked_folder(arguments)
    jobs = plan_jobs(
        _requests(arguments),
        folder,
        seed=arguments.seed,
        frames=arguments.frames,
        image=arguments.image,
        video=arguments.extend,
    )

    import torch

    from arl2.cli.loading import load_model, model_name
    from arl2.cli.progress import Summary, progress_of, voice
    from arl2.cli.usage import memory_words
    from arl2.interrupt import StopSignal
    from arl2.serving.engine import JobSettings, shown_scale

    say = voice(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pipe = load_model(arguments)
    settings = JobSettings(
        model=model_name(arguments),
        steps=arguments.steps,
        first_block_candidates=arguments.candidates,
        window=arguments.window,
        scale=arguments.scale or shown_scale(pipe),
        only_new=arguments.only_new,
    )
    work = JobList(pipe, jobs, settings)
    work.check()
    pending = len(work.unfinished())
    say(f"{len(jobs)} videos: {len(jobs) - pending} finished before, {pending} to make")
    started = time.perf_counter()
    with StopSignal() as stop, progress_of(arguments) as progress:
        made = _work(work, stop, progress)
        seconds = time.perf_counter() - started
        progress.done(
            Summary(files=made.finished, video_frames=made.video_frames, seconds=seconds, interrupted=stop.asked)
        )
    if stop.asked:
        part = f"; the part of '{made.partial}' that was done can be played" if made.partial is not None else ""
        print(
            f"arl2 generate: interrupted; {len(made.finished)} videos were finished in '{folder}'{part}. "
            "Run the same command to resume.",
            file=sys.stderr,
        )
        return 130
    say(f"wrote {len(made.finished)} videos to {folder}")
    say(
        f"{made.video_frames} video frames in {seconds:.2f} s, written: {made.video_frames / seconds:.0f} a second; "
        f"peak memory {memory_words()}"
    )
    return 0


@dataclass
class _Made:
    """What this run made: whole files, the one it was stopped in, and all video frames written."""

    finished: list[Path] = field(default_factory=list)
    partial: Path | None = None
    video_frames: int = 0


def _work(work: "JobList", stop: "StopSignal", progress: "Progress") -> _Made:
    """All jobs, until the end, or until a stop is asked for and the current block is written."""
    from arl2.serving.engine import BlockDone
    from arl2.serving.jobs import Finished

    made = _Made()
    # Closing completes the file that a stop interrupts.
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


def _requests(arguments: argparse.Namespace) -> list[VideoRequest]:
    path: Path = arguments.prompts_file
    found = read_image_folder(path) if path.is_dir() else read_prompts_file(path)
    samples = arguments.num_samples or 1
    for one in found:
        if samples > 1 and (one.seed is not None or one.file is not None):
            raise ConfigError(
                f"{one.where}: --num-samples {samples} repeats a line with other seeds and names, but this one has its "
                "own; take seed and file out of it, or write a line for each."
            )
    return [one for one in found for _ in range(samples)]


def _checked_folder(arguments: argparse.Namespace) -> Path:
    for name, value in (("PROMPT", arguments.prompts), ("--sheet", arguments.sheet), ("--latents", arguments.latents)):
        if value:
            raise ConfigError(f"{name} does not go with --prompts-file; leave it out.")
    folder: Path | None = arguments.output
    if folder is None or folder.suffix or folder == Path("-"):
        raise ConfigError("The videos of --prompts-file go to a folder: give --output a name without extension.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"'{folder}' is a file, but a folder is to be written; choose another name.")
    return folder
