"""The work of ``arl2 stream``: from checked words to a stream that runs, and what is said about it."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arl2.cli.loading import load_pipeline
from arl2.cli.progress import BlockReport, Progress, Summary
from arl2.cli.standard_streams import lasting_streams, say_error
from arl2.cli.stream_options import StreamOptions
from arl2.cli.usage import memory_words
from arl2.errors import Arl2Error, ConfigError
from arl2.interrupt import StopSignal
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.engine import shown_scale
from arl2.serving.outputs.opening import open_output
from arl2.serving.outputs.preview import TerminalPreview, require_terminal
from arl2.serving.outputs.raw import ReaderGoneError
from arl2.serving.pace import Pace
from arl2.serving.script import BlockTimes, Change, Entry, plan_script
from arl2.serving.streaming import Shown, Snapshots, StreamRun
from arl2.streams.stream import Stream
from arl2.version import __version__
from arl2.video.formats import STANDARD_OUTPUT, VideoFileError
from arl2.video.writing import VideoWriter


def run_stream(asked: StreamOptions, script: tuple[Entry, ...]) -> int:
    """Load, stream, say what it took; the exit code."""
    # The program that reads the lines may end; the stream continues, and what ends it saves it.
    with lasting_streams():
        pipe = load_pipeline(asked.source, asked.sampling, threads=asked.threads, say=_voice(asked))
        changes = _planned(pipe, script)
        with _begun(pipe, asked) as stream, StopSignal() as stop, _hangup_too(stop):
            return _run(pipe, stream, changes, asked, stop)


def _run(
    pipe: ARL2Pipeline, stream: Stream, changes: tuple[Change, ...], asked: StreamOptions, stop: StopSignal
) -> int:
    say, fps = _voice(asked), pipe.settings.fps
    pace = Pace(fps, stopped=lambda: stop.asked)
    preview = _preview(asked, pace, lambda: f"{work.video_frames / fps:.0f} s  {work.prompt}")
    work: StreamRun = StreamRun(
        stream,
        times=_times(pipe),
        frames=asked.sampling.num_frames if asked.seconds is None else max(1, round(asked.seconds * fps)),
        changes=changes,
        snapshots=_snapshots(asked),
        policy=asked.out.policy,
        # A preview that shows every frame in its time is clock enough, and so is a viewer's buffer.
        pace=pace if asked.out.live and preview is None and asked.out.policy != "just-in-time" else None,
    )
    if asked.out.output is not None:
        work.add_output(output := _file(pipe, asked, stop))
        if output.note is not None:
            say(output.note)
    if preview is not None:
        work.add_output(preview)
    if work.note is not None:
        say(work.note)
    made = _Made(work, fps, asked.out.output or Path("the terminal"))
    try:
        with asked.reporting.progress(endless=work.until is None, hidden=preview is not None) as progress:
            with closing(work.run(lambda: stop.asked)) as events:
                for shown in events:
                    made.tell(shown, progress)
            progress.done(made.summary(interrupted=stop.asked))
    except ReaderGoneError as error:
        # Somebody who watches a stream without end, or a part of it, goes away at some time: no failure.
        if not (stop.asked or asked.forever):
            raise ReaderGoneError(f"{error}{made.saved(asked)}") from error
        _say_error(f"{error}{made.saved(asked)}", asked)
        return 130 if stop.asked else 0
    except VideoFileError as error:
        raise VideoFileError(f"{error}{made.saved(asked)}") from error
    except Exception:
        if saved := made.saved(asked).strip():
            say_error(f"arl2 stream: {saved}")
        raise
    took = f"{made.took()}; peak memory {memory_words()}"
    if stop.asked:
        say_error(f"arl2 stream: interrupted; {made.where} is whole: {took}.{made.saved(asked)}")
        return 130
    say(f"wrote {made.where}" if asked.out.output is not None else "shown")
    say(f"{took}.{made.saved(asked)}")
    return 0


def _voice(asked: StreamOptions) -> Callable[[str], None]:
    return asked.reporting.voice(asked.out.output)


def _say_error(words: str, asked: StreamOptions) -> None:
    """A line for people on standard error, unless they are not wanted."""
    if not asked.reporting.quiet and not asked.reporting.json_progress:
        say_error(f"arl2 stream: {words}")


class _Made:
    """What a run has put out, in words."""

    def __init__(self, work: StreamRun, fps: int, where: Path) -> None:
        self._work, self._fps, self.where = work, fps, where
        self._first = work.stream.index
        self._started = time.perf_counter()
        self._dropped = 0

    def tell(self, shown: Shown, progress: Progress) -> None:
        """A block is out."""
        self._dropped = shown.dropped
        blocks = None if self._work.until is None else self._work.until - self._first
        done = shown.block.index + 1 - self._first
        progress.block(
            BlockReport(
                index=shown.block.index if blocks is None else done - 1,
                blocks=blocks,
                file=self.where,
                video_frames=shown.video_frames,
                video_seconds=shown.video_frames / self._fps,
                video=0,
                videos=1,
                share=None if blocks is None else done / blocks,
                fps=shown.video_frames / self._seconds(),
                dropped=shown.dropped,
            )
        )

    def summary(self, *, interrupted: bool) -> Summary:
        """The end, for programs."""
        return Summary(
            files=[self.where],
            video_frames=self._work.video_frames,
            seconds=self._seconds(),
            interrupted=interrupted,
            dropped=self._dropped,
        )

    def took(self) -> str:
        """The end, for people."""
        frames, seconds = self._work.video_frames, self._seconds()
        dropped = f", {self._dropped} more dropped" if self._dropped else ""
        return f"{frames} video frames in {seconds:.2f} s: {frames / seconds:.0f} a second{dropped}"

    def saved(self, asked: StreamOptions) -> str:
        """Where the stream can continue, and what is not shown before."""
        at, missing = self._work.saved_at, self._work.missing
        if at is None:
            return ""
        gap = f"; video frames {missing.start} to {missing.stop - 1} have no pictures" if missing else ""
        return f" The stream is saved after {at} block{'s' if at != 1 else ''} in {asked.saving.file}{gap}."

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def _begun(pipe: ARL2Pipeline, asked: StreamOptions) -> Stream:
    """The stream, from its beginning or from a snapshot."""
    if asked.saving.resume is not None:
        stream = pipe.resume(asked.saving.resume)
        if asked.prompt is not None:
            stream.change_prompt(asked.prompt)
        return stream
    if asked.sampling.window is None or (asked.sampling.window == "settings" and pipe.settings.window is None):
        _voice(asked)("softmax layers see the whole past: memory grows with the stream; --window N bounds it")
    # Its length is the run's; nobody rewinds here.
    return pipe.stream(asked.prompt, options=replace(asked.sampling, num_frames=None), rewind_blocks=0)


def _planned(pipe: ARL2Pipeline, script: tuple[Entry, ...]) -> tuple[Change, ...]:
    """The script at its blocks, every prompt read once: nothing is refused hours later."""
    changes = plan_script(script, _times(pipe))
    for change in changes:
        try:
            with torch.no_grad():
                pipe.text.encode([change.entry.prompt])
        except Arl2Error as error:
            raise ConfigError(f"{change.entry.where}: {error}") from error
    # What takes effect at the first block is the stream's prompt.
    return tuple(change for change in changes if change.block > 0)


def _times(pipe: ARL2Pipeline) -> BlockTimes:
    return BlockTimes(
        fps=pipe.settings.fps,
        temporal_factor=pipe.codec.temporal_factor,
        block_frames=pipe.block_frames,
        first_block_frames=pipe.settings.first_block_frames or pipe.block_frames,
    )


def _snapshots(asked: StreamOptions) -> Snapshots | None:
    if asked.saving.file is None:
        return None
    return Snapshots(path=asked.saving.file, kind=asked.saving.snapshot_kind or "exact", every=asked.saving.save_every)


def _file(pipe: ARL2Pipeline, asked: StreamOptions, stop: StopSignal) -> VideoWriter:
    assert asked.out.output is not None
    minutes = asked.out.keep_minutes
    facts: dict[str, Any] = {"prompt": asked.prompt, "seed": asked.sampling.seed or 0}
    if asked.saving.resume is not None:
        facts = {"resumed": str(asked.saving.resume)}
    return open_output(
        asked.out.output,
        fps=pipe.settings.fps,
        scale=asked.out.scale or shown_scale(pipe),
        settings={**facts, "model": asked.source.name, "fps": pipe.settings.fps, "arl2": __version__},
        keep_seconds=None if minutes is None or minutes == "all" else 60 * minutes,
        going_on=asked.saving.resume is not None,
        overwrite=asked.out.overwrite,
        stopped=lambda: stop.asked,
    )


def _preview(asked: StreamOptions, pace: Pace, caption: Callable[[], str]) -> TerminalPreview | None:
    """None, and a line that says why, where nothing can be drawn but an output is there."""
    if not asked.out.preview:
        return None
    terminal = sys.stderr if asked.out.output == STANDARD_OUTPUT else sys.stdout
    try:
        require_terminal(terminal)
    except VideoFileError as error:
        if asked.out.output is None:
            raise VideoFileError(f"Nothing would be shown or kept: {error}; give --output.") from error
        _say_error(str(error), asked)
        return None
    in_time = asked.out.live or asked.out.output is None
    return TerminalPreview(terminal, pace=pace if in_time else None, caption=caption)


@contextmanager
def _hangup_too(stop: StopSignal) -> Iterator[None]:
    """A terminal that goes away (a broken ssh) asks to stop, too, unless the person said that it shall not (nohup)."""
    if sys.platform == "win32" or signal.getsignal(signal.SIGHUP) != signal.SIG_DFL:
        yield
        return

    def ask(*_: object) -> None:
        stop.asked = True

    signal.signal(signal.SIGHUP, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
