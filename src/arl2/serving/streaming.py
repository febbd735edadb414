"""A stream on its way to viewers: a script changes its prompts, snapshots are taken, its frames go to outputs.

What ends it leaves whole outputs and, where snapshots are wanted, a last one. A snapshot on disk is never ahead of the
outputs, so that a run that was killed leaves no hole when it is resumed. Where an output failed, blocks were under way:
the last snapshot is past them, and ``StreamRun.missing`` says which video frames were not written.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from arl2.errors import ConfigError
from arl2.files.atomic import StagedFile
from arl2.rollout.blocks import VideoBlock
from arl2.serving.keep_up import KeepUp, Policy
from arl2.serving.pace import Pace, ViewerBuffer, never
from arl2.serving.script import BlockTimes, Change
from arl2.streams.snapshot_file import publish_snapshot
from arl2.streams.state import SnapshotKind
from arl2.streams.stream import Stream
from arl2.video.writing import VideoWriter

_MOST_WAITING = 4  # snapshots, for an output that holds frames back
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """Where and when a stream is saved.

    Attributes:
        path: of the one file, which is replaced as a whole.
        kind: see ``arl2.streams.stream.Stream.save``.
        every: blocks between two of them; None saves at the end alone.
    """

    path: Path
    kind: SnapshotKind = "exact"
    every: int | None = None


@dataclass(frozen=True)
class Shown:
    """A block that the outputs have.

    Attributes:
        block: itself.
        video_frames: that this run has written.
        dropped: video frames that were not written in time.
    """

    block: VideoBlock
    video_frames: int
    dropped: int


@dataclass(frozen=True)
class _Waiting:
    """A snapshot before block ``index``, when ``shown`` video frames of this run are written."""

    index: int
    file: StagedFile
    shown: int = 0


class StreamRun:
    """Writes a stream to outputs.

    Args:
        stream: of one sample (of several, the first is shown), at a place where nothing waits to be decoded.
        outputs: where the frames go; closed at the end.
        times: of the stream's blocks.
        frames: video frames of this run; None continues until ``stopped``, or to the stream's own end. With snapshots
            the last block is not cut, so that a resumed stream leaves nothing out.
        changes: of the prompt; those before the stream's place are ignored.
        snapshots: whether and where the stream is saved.
        policy: see ``KeepUp``; with "just-in-time" the outputs are watched as they are written.
        pace: waited for after every block.

    Raises:
        ConfigError: a number of frames below 1, or of blocks between snapshots.
    """

    def __init__(
        self,
        stream: Stream,
        outputs: Sequence[VideoWriter] = (),
        *,
        times: BlockTimes,
        frames: int | None = None,
        changes: Sequence[Change] = (),
        snapshots: Snapshots | None = None,
        policy: Policy = "wait",
        pace: Pace | None = None,
    ) -> None:
        every = None if snapshots is None else snapshots.every
        for name, number in (("video frames", frames), ("blocks between snapshots", every)):
            if number is not None and number < 1:
                raise ConfigError(f"Got {number} {name}; give 1 or more.")
        self.stream = stream
        self._outputs: list[VideoWriter] = []
        self._first = stream.index
        self._changes = [change for change in changes if change.block >= self._first]
        self._snapshots, self._policy, self._pace = snapshots, policy, pace
        self._times, begin = times, times.begin(self._first)
        # Of the stream: where the next frames begin.
        self._next_frame = begin
        self.missing = range(0)
        self.until = None if frames is None else times.block_from(begin + frames)
        # Of this run; whole blocks need no limit.
        self._frames = frames if snapshots is None else None
        self.note: str | None = None
        if self.until is not None and (whole := times.begin(self.until) - begin) != frames:
            done = "all are written" if self._frames is None else f"then cut to {frames}"
            self.note = f"{frames} video frames do not fill whole blocks: {whole} are generated, {done}."
        self.video_frames = 0
        self.saved_at: int | None = None
        self._prompt = _said(stream.prompt)
        at_once = self._changes[0].entry.prompt if self._changes and self._changes[0].block == self._first else None
        self._name = stream.name_with(stream.prompt if at_once is None else at_once)
        self._actions: list[Future[None]] = []
        for output in outputs:
            self.add_output(output)
        # Snapshots that wait for the outputs, and those that wait until what the outputs have would outlive a kill.
        self._waiting: deque[_Waiting] = deque()
        self._flushed: deque[_Waiting] = deque()

    @property
    def prompt(self) -> str:
        """In force at the block that is shown."""
        return self._prompt

    def add_output(self, output: VideoWriter) -> None:
        """One more output, before ``run``; it is closed there. Its ``note`` then says how it continues."""
        output.place(self._next_frame, self._name)
        self._outputs.append(output)

    def run(self, stopped: Callable[[], bool] = never) -> Generator[Shown, None, None]:
        """Write block after block.

        Args:
            stopped: whether to end. What is under way is still written.

        Raises:
            VideoFileError: an output fails; blocks that were under way are not written there (``missing``: their video
                frames, in the stream's numbers), but the stream is saved.
            SnapshotError: the stream cannot be saved; the snapshot before stays.
            Exception: whatever else stopped the stream; if what it remembers is whole, it is saved all the same.
        """
        buffer = ViewerBuffer(self._times.fps) if self._policy == "just-in-time" else None
        with KeepUp(self.stream, policy=self._policy, buffer=buffer, until=self.until) as keep:
            self._plan(keep)
            try:
                with ExitStack() as stack:
                    for output in self._outputs:
                        stack.enter_context(output)
                    for block in keep:
                        self._show(block)
                        self._publish(block.index + 1)
                        yield Shown(block, self.video_frames, keep.dropped_frames)
                        self._hear_actions()
                        if stopped():
                            keep.stop()
                self._hear_actions()
                self._publish(self.stream.index)
            # A consumer that leaves early, too.
            except (Exception, GeneratorExit):
                self._rescue(keep)
                raise
            self._save_last()

    def _plan(self, keep: KeepUp[Stream]) -> None:
        for change in self._changes:
            self._actions.append(keep.at_block(partial(_change_prompt, change), index=change.block))
        every = None if self._snapshots is None else self._snapshots.every
        if every is None:
            return

        def save(stream: Stream) -> None:
            assert self._snapshots is not None
            self._waiting.append(_Waiting(stream.index, stream.stage(self._snapshots.path, self._snapshots.kind)))
            self._actions.append(keep.at_block(save, index=stream.index + every))

        self._actions.append(keep.at_block(save, index=self._first + every))

    def _show(self, block: VideoBlock) -> None:
        while self._changes and self._changes[0].block <= block.index:
            self._prompt = self._changes.pop(0).entry.prompt
            self._name = self.stream.name_with(self._prompt)
        frames = block.pixels()
        if self._frames is not None:
            frames = frames[: self._frames - self.video_frames]
        for output in self._outputs:
            if block.cut:
                output.mark_cut()
            output.place(block.first_video_frame, self._name)
            output.write(frames)
        self.video_frames += len(frames)
        self._next_frame = block.first_video_frame + block.video.shape[2]
        if self._pace is not None:
            self._pace.wait(len(frames))

    def _publish(self, next_block: int) -> None:
        """Snapshots of this block or earlier ones take their place, once a kill would lose nothing that comes before.

        Some formats hold frames back: an mp4 keeps those of a second or two in its encoder.
        """
        while self._waiting and self._waiting[0].index <= next_block:
            for output in self._outputs:
                output.flush()
            self._flushed.append(replace(self._waiting.popleft(), shown=self.video_frames))
        # They are large: of many that wait, one before the newest is left out.
        while len(self._flushed) > _MOST_WAITING:
            self._flushed[-2].file.discard()
            del self._flushed[-2]
        lasting = self.video_frames - max((output.pending_frames for output in self._outputs), default=0)
        while self._flushed and self._flushed[0].shown <= lasting:
            ready = self._flushed.popleft()
            publish_snapshot(ready.file)
            self.saved_at = ready.index

    def _hear_actions(self) -> None:
        """What went wrong between blocks: a prompt that is refused, a snapshot that cannot be written."""
        for done in [one for one in self._actions if one.done()]:
            self._actions.remove(done)
            if not done.cancelled():
                done.result()

    def _rescue(self, keep: KeepUp[Stream]) -> None:
        """Something failed, but what the stream remembers may be whole. Raises nothing that would hide the failure."""
        if self._snapshots is None:
            return
        try:
            keep.stop()
            for _ in keep:
                continue
            for waiting in (*self._flushed, *self._waiting):
                waiting.file.discard()
            self._save_last()
            self.missing = range(self._next_frame, self._times.begin(self.stream.index))
        except Exception as error:
            logger.warning("the stream was not saved: %s", str(error) or repr(error))

    def _save_last(self) -> None:
        if self._snapshots is not None and self._first < self.stream.index != self.saved_at:
            self.stream.save(self._snapshots.path, kind=self._snapshots.kind)
            self.saved_at = self.stream.index


def _change_prompt(change: Change, stream: Stream) -> None:
    stream.change_prompt(change.entry.prompt, mode=change.entry.mode)


def _said(prompt: str | list[str] | None) -> str:
    return prompt if isinstance(prompt, str) else (prompt or [""])[0]
