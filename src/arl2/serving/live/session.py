"""One running stream: its blocks are made just in time, encoded once, released frame by frame, and kept at points.

Three threads: ``KeepUp`` denoises and decodes, this session's own encodes and releases. Commands take effect between
two blocks, after they are in the journal.
"""

import contextlib
import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from arl2.errors import Arl2Error, StreamError
from arl2.rollout.blocks import VideoBlock
from arl2.serving.keep_up import KeepUp
from arl2.serving.live.history import History, new_point
from arl2.serving.live.journal import JournalEntry
from arl2.serving.live.point_writer import PointWriter
from arl2.serving.live.release import Release
from arl2.serving.live.settings import HostSettings
from arl2.serving.live.source import LiveSource, prompt_of
from arl2.serving.live.wire import BlockHead, Command, EncodedFrame, Ended, Figures, Point, WatchItem
from arl2.serving.pace import ViewerBuffer
from arl2.streams.state import SnapshotKind
from arl2.streams.stream import Stream
from arl2.video.h264 import H264Encoder, codec_of
from arl2.video.pixels import Frame, enlarge

logger = logging.getLogger(__name__)

_AVERAGED = 8  # blocks, of figures
_OVER = "The stream has ended before; fork it at one of its points, or begin another."


class Session:
    """Runs a stream from ``start`` until it is finished, closed, at its end, or failed.

    Args:
        source: where its blocks come from.
        history: what is kept of it.
        settings: of the host.
        resume: a stream from the bytes of a snapshot.
        put: gets what viewers get, from several threads; it must not wait.
        over: told once, by the thread that releases, when nothing follows; None: it was finished or closed.
        writer: writes points, one after the other.
        replay: commands of the journal that are still to come.

    Raises:
        GeometryError: pictures that cannot be encoded.
    """

    def __init__(
        self,
        source: LiveSource,
        history: History,
        settings: HostSettings,
        *,
        resume: Callable[[bytes], Stream],
        put: Callable[[WatchItem], None],
        over: Callable[["Session", Ended | None], None],
        writer: Executor,
        replay: Iterable[JournalEntry] = (),
    ) -> None:
        record = history.record
        self._source, self._history, self._settings = source, history, settings
        self._resume, self._put, self._told_over = resume, put, over
        self._encoder = H264Encoder(record.width, record.height, record.fps)
        self._codec = ""
        realtime = record.request.realtime
        self._release = Release(record.fps if realtime else None)
        self._keep: KeepUp[LiveSource] = KeepUp(
            source,
            policy="just-in-time" if realtime else "wait",
            buffer=ViewerBuffer(record.fps, margin=settings.margin) if realtime else None,
        )
        self._thread = threading.Thread(target=self._show_all, name="arl2-release", daemon=True)
        self._guard = threading.Lock()  # of what follows
        self._released = source.index - 1  # the last block that all viewers could have whole
        self._applied = (-1, 0)  # block and number of the last command
        self._seconds: deque[tuple[float, int]] = deque(maxlen=_AVERAGED)
        self._sent_bytes = 0
        self._finishing = False
        self._error: str | None = None
        self._pause_from: int | None = None  # a pause that waits until the blocks before this one are shown
        self._points = PointWriter(history, writer, self._fail, released=self._released)
        self._replay = deque(replay)
        # In a pause that the journal is still to tell of it was not, where the journal begins.
        turns = [entry.command.action for entry in self._replay if entry.command.action in ("pause", "play")]
        if turns[0] == "play" if turns else record.paused:
            self.pause(True)

    def catch_up(self, after: int) -> None:
        """Before the start: make blocks up to this one, with the commands of the journal, and release them at once."""
        with torch.no_grad(), contextlib.suppress(StopIteration):
            while self._source.index <= after:
                while self._replay and self._replay[0].block <= self._source.index:
                    self._apply_again(self._replay.popleft(), self._source)
                self._show(self._source.decode(self._source.latents_next()), paced=False)
        self._pause_when_shown()

    def start(self) -> None:
        """Begin to make and to release blocks."""
        for entry in self._replay:
            self._keep.at_block(partial(self._apply_again, entry), index=entry.block)
        self._plan_point()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether blocks may still come."""
        return self._thread.is_alive()

    @property
    def block(self) -> int:
        """The next one that is released."""
        return self._released + 1

    @property
    def frame(self) -> int:
        """The next one that is decoded."""
        return self._source.frame

    @property
    def error(self) -> str | None:
        """Why it failed: a sentence."""
        return self._error

    @property
    def warning(self) -> str | None:
        """What does not work at present although it runs on: a sentence."""
        return self._points.warning

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        return self._keep.paused

    @property
    def figures(self) -> Figures:
        """Of the last blocks."""
        with self._guard:
            made = list(self._seconds)
        seconds, frames = sum(one for one, _ in made), sum(count for _, count in made)
        if not made:
            return Figures(memory_bytes=self._source.memory_bytes, sent_bytes=self._sent_bytes)
        return Figures(
            block_seconds=seconds / len(made),
            frames_a_second=frames / seconds if seconds else 0.0,
            share=seconds / (frames / self._history.record.fps),
            memory_bytes=self._source.memory_bytes,
            sent_bytes=self._sent_bytes,
        )

    def pause(self, paused: bool) -> None:
        """Stop the release at once, or let it go on; no block begins in a pause. The journal hears nothing of it."""
        with self._guard:
            self._pause_from = None
        self._release.pause(paused)
        self._keep.pause(paused)

    def give(self, command: Command) -> "Future[tuple[int, int | None]]":
        """Apply a command between two blocks; pauses stop the release at once.

        Returns:
            the first block made with it, and of a rewind the point it went to. Raises why it was refused.
        """
        # Commands apply after a first block that was given, which may not be handed out yet.
        now, due = self._source.next_made, self._history.last_command_block
        # Commands of the journal that are still to come are older; a pause before them would hold them up.
        if command.action in ("pause", "play") and due <= now:
            self.pause(command.action == "pause")
        return self._at_block(partial(self._apply, command), index=due if due > now else None)

    def fork(self) -> "Future[tuple[int, int, Stream]]":
        """A second stream that continues from here, with the numbers of its next block and frame."""
        return self._at_block(_forked)

    def snapshot(self, kind: SnapshotKind) -> bytes:
        """Bytes of now; waits until the block that is made is over.

        Raises:
            StreamError: it has ended.
        """
        twin = self._at_block(lambda source: source.stream.fork()).result()
        with twin:
            return twin.save_bytes(kind)

    def finish(self) -> None:
        """Make no further block, release those that are made at once, and keep a point of the end.

        Where that cannot be kept, the blocks since the one before are made again when it continues.
        """
        self._finishing = True
        self._keep.stop()
        self._release.hurry()
        if self._thread.ident is not None:
            self._thread.join()
        self._keep.close()
        self.keep_last_point()

    def keep_last_point(self) -> None:
        """Once no thread runs any more: keep a point of where it stands, unless there is one, or nothing was shown."""
        source = self._source
        newest = self._history.points[-1] if self._history.points else None
        is_new = newest is None or (newest.block, newest.entry) < (source.index, self._entry_in(source.index))
        if self._error is not None or not source.opened or source.next_made != source.index or not is_new:
            return
        if source.index > self._history.record.block:
            self._points.add(self._point(source), source.stream.fork())
        self._points.wait()

    def close(self) -> None:
        """End at once; waits for the passes under way. What was not released is made again from the last point."""
        self._finishing = True
        self._release.close()
        self._keep.close()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._points.close()
        self._source.close()

    # Commands, in the thread that denoises

    def _at_block(self, action: Callable[[LiveSource], Any], *, index: int | None = None) -> "Future[Any]":
        """As ``KeepUp.at_block``, but an end before it is an error like others."""
        result: Future = Future()
        result.set_running_or_notify_cancel()

        def end(done: Future) -> None:
            error = StreamError(_OVER) if done.cancelled() else done.exception()
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(done.result())

        try:
            self._keep.at_block(action, index=index).add_done_callback(end)
        except StreamError:
            result.set_exception(StreamError(_OVER))
        return result

    def _apply(self, command: Command, source: LiveSource) -> tuple[int, int | None]:
        source.stream  # noqa: B018  opened: a first block that is there already is not changed any more
        block = source.next_made
        if command.action == "rewind":
            command = self._resolved(command, block)
        try:
            entry = self._history.note(command, block)
        except Arl2Error:
            if command.action in ("pause", "play"):  # it was done at once
                self.pause(self._history.record.paused)
            raise
        try:
            self._do(command, source)
        except Arl2Error as error:
            self._history.refuse(entry, str(error))
            raise
        self._applied = (block, entry.number)
        if command.action == "rewind":
            self._keep_point(source)
        return block, command.block if command.action == "rewind" else None

    def _apply_again(self, entry: JournalEntry, source: LiveSource) -> None:
        """Do what the journal says, after a kill; what was refused then is refused again."""
        try:
            if entry.command.action == "pause":  # what comes before it is shown
                self._history.change(paused=True)
                self._keep.pause()
                with self._guard:
                    self._pause_from = entry.block
                self._pause_when_shown()
            else:
                self._do(entry.command, source)
        except Arl2Error as error:
            self._history.refuse(entry, str(error))
        else:
            self._applied = (entry.block, entry.number)

    def _pause_when_shown(self) -> None:
        with self._guard:
            due = self._pause_from is not None and self._released + 1 >= self._pause_from
        if due:
            self.pause(True)

    def _do(self, command: Command, source: LiveSource) -> None:
        if command.action == "prompt":
            source.stream.change_prompt(command.prompt or "", mode=command.mode)
        elif command.action == "rewind":
            assert command.block is not None
            stream = self._resume(self._history.data(command.block))
            if command.seed is not None:
                with stream:
                    stream = stream.fork(seed=command.seed)
            source.exchange(stream)
        else:
            self._history.change(paused=command.action == "pause")
            self.pause(command.action == "pause")

    def _resolved(self, command: Command, now: int) -> Command:
        """With the block of its point, and the prompt that it brings back."""
        if command.block is not None:
            point = self._history.point_at(command.block)
        else:
            point = self._history.point_back(1 if command.blocks is None else command.blocks, now=now)
        return replace(command, block=point.block, blocks=None, prompt=point.prompt)

    # Points

    def _plan_point(self) -> None:
        every = self._settings.point_every
        following = (self._source.index // every + 1) * every

        def keep(source: LiveSource) -> None:
            self._keep_point(source)
            self._plan_point()

        self._keep.at_block(keep, index=following)

    def _keep_point(self, source: LiveSource) -> None:
        """Fork it now; another thread writes it, once all viewers could have what comes before."""
        if source.next_made != source.index:
            return
        self._points.add(self._point(source), source.stream.fork())

    def _point(self, source: LiveSource) -> Point:
        stream = source.stream
        return new_point(
            block=source.index,
            frame=source.frame,
            index=stream.index,
            prompt=prompt_of(stream),
            entry=self._entry_in(source.index),
        )

    def _entry_in(self, block: int) -> int:
        return self._applied[1] if self._applied[0] == block else 0

    # Releasing, in this session's own thread

    def _show_all(self) -> None:
        ended: Ended | None = None
        try:
            for block in self._keep:
                if not self._show(block):
                    break
            else:
                ended = None if self._finishing else Ended("end")
        except Exception as error:
            self._fail(error)
        if self._error is not None:
            ended = Ended("failed", self._error)
        self._told_over(self, ended)

    def _show(self, block: VideoBlock, *, paced: bool = True) -> bool:
        """Encode and release a block's frames one by one; False: it was closed."""
        made = self._source.made(block.index)
        pixels = block.pixels()
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=16).hexdigest()
        shown = enlarge(pixels, self._settings.scale)
        for place, picture in enumerate(shown):
            number = block.first_video_frame + place
            data, key = self._encoded(picture, number, key=place == 0)
            if place == 0:
                self._codec = codec_of(data) or self._codec
                self._put(
                    BlockHead(
                        block=block.index,
                        index=made.index,
                        frame=number,
                        frames=len(shown),
                        cut=block.cut,
                        prompt=made.prompt,
                        denoise_seconds=block.denoise_seconds,
                        commit_seconds=block.commit_seconds,
                        decode_seconds=block.decode_seconds,
                        digest=digest,
                        codec=self._codec,
                    )
                )
            if paced and not self._release.frame():
                return False
            self._put(EncodedFrame(block.index, number, key, data, time.time()))
            self._sent_bytes += len(data)
        with self._guard:
            seconds = block.denoise_seconds + block.commit_seconds + block.decode_seconds
            self._seconds.append((seconds, len(shown)))
            self._released = block.index
        self._points.release(block.index)
        self._pause_when_shown()
        return True

    def _encoded(self, picture: Frame, number: int, *, key: bool) -> tuple[bytes, bool]:
        packets = self._encoder.encode(picture, number, key=key)
        if len(packets) != 1 or packets[0].pts != number:
            raise StreamError(f"The encoder gave {len(packets)} packets for video frame {number} instead of its own.")
        return bytes(packets[0]), bool(packets[0].is_keyframe)

    def _fail(self, error: Exception) -> None:
        """The stream ends here, and others do not hear of it."""
        if not isinstance(error, Arl2Error):
            logger.error("stream %s failed", self._history.record.id, exc_info=error)
        said = str(error) if isinstance(error, Arl2Error) else f"The stream failed ({type(error).__name__}: {error})."
        with self._guard:
            self._error = self._error or said
        self._release.close()
        self._keep.stop()


def _forked(source: LiveSource) -> tuple[int, int, Stream]:
    stream = source.stream
    return source.next_made, source.next_frame, stream.fork()
