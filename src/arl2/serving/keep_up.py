"""A stream and its consumer, each at its own pace: one thread denoises, another decodes, the consumer takes frames.

Block ``i`` is decoded, and block ``i - 1`` shown, while block ``i + 1`` is denoised. Between them are queues of a few
blocks and never more: when the consumer is slow, either the stream waits for it or frames are dropped. With a viewer's
buffer nothing is made early: a block begins when the viewer has no more than one block left to see, so that a new
prompt shows after at most the block that is seen and the one that is made. What the stream generates is the same in
every case, bit for bit.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch

from arl2.errors import ConfigError, StreamError
from arl2.rollout.blocks import Block, VideoBlock
from arl2.serving.pace import ViewerBuffer

Policy = Literal["wait", "drop", "just-in-time"]
POLICIES: tuple[Policy, ...] = ("wait", "drop", "just-in-time")


@runtime_checkable
class BlockStream(Protocol):
    """What is needed of a stream: ``arl2.streams.stream.Stream`` has it."""

    @property
    def index(self) -> int:
        """Number of the next block."""

    def latents_next(self) -> Block:
        """Denoise a block; raises ``StopIteration`` after the last one."""

    def decode(self, block: Block) -> VideoBlock:
        """Video frames of a block; blocks come in order."""


AnyStream = TypeVar("AnyStream", bound=BlockStream)
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Action:
    """Something to do with the stream between two blocks; ``index`` None: before the next one."""

    run: Callable[[Any], Any]
    index: int | None
    done: Future


class KeepUp(Iterator[VideoBlock], Generic[AnyStream]):
    """Iterates over a stream's blocks while the next ones are made.

    Use it as a context: leaving it ends the threads, once the passes under way are over. Work begins at the first
    ``next``.

    Args:
        stream: where the blocks come from. During the iteration nobody else may touch it; see ``at_block``.
        ahead: blocks that may wait for the decoder, and as many for the consumer.
        policy: what happens when the consumer is slower than the stream: "wait" holds the stream up, "drop" throws the
            oldest block away that was not taken yet. The block after dropped ones says ``cut``. "just-in-time" begins a
            block when the ``buffer`` says so and none waits anywhere.
        buffer: of the viewer, for "just-in-time": whatever is taken is given to the viewer at once.
        until: number of the block before which the iteration ends; None: the stream's own end.

    Raises:
        ConfigError: ``ahead`` below 1, an unknown policy, or "just-in-time" without a buffer and the other way round.
    """

    def __init__(
        self,
        stream: AnyStream,
        *,
        ahead: int = 1,
        policy: Policy = "wait",
        buffer: ViewerBuffer | None = None,
        until: int | None = None,
    ) -> None:
        if ahead < 1:
            raise ConfigError(f"ahead is {ahead}, but at least one block must be able to wait; give 1 or more.")
        if policy not in POLICIES:
            raise ConfigError(f"policy is {policy!r}; use {', '.join(POLICIES[:-1])} or {POLICIES[-1]}.")
        if (policy == "just-in-time") != (buffer is not None):
            raise ConfigError('The policy "just-in-time" goes with a viewer\'s buffer; give both or neither.')
        self._stream, self._ahead, self._policy, self._until = stream, ahead, policy, until
        self._buffer, self._last_frames = buffer, 0  # of the block that was taken last
        # Guards everything below; every change notifies.
        self._changed = threading.Condition()
        self._latents: deque[Block] = deque()
        self._frames: deque[VideoBlock] = deque()
        self._actions: list[_Action] = []
        self._threads: tuple[threading.Thread, ...] = ()
        # The decoder has a block in hand whose frames are not there yet.
        self._decoding = False
        # Actions wait until everything is decoded: frames in hand go out whether they are awaited or not.
        self._draining = False
        self._stopping = self._closed = self._paused = False
        self._denoised_all = self._decoded_all = False
        self._error: Exception | None = None
        self._dropped_blocks = self._dropped_frames = 0
        self._cut_next = False

    @property
    def dropped_blocks(self) -> int:
        """Blocks that were not taken in time."""
        return self._dropped_blocks

    @property
    def dropped_frames(self) -> int:
        """Video frames of the dropped blocks."""
        return self._dropped_frames

    def __enter__(self) -> "KeepUp[AnyStream]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> "KeepUp[AnyStream]":
        return self

    def __next__(self) -> VideoBlock:
        """The next block; raises what went wrong in denoiser or decoder, after the blocks that were whole."""
        self._start()
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._decoded_all or self._closed)
            if self._frames:
                block = self._frames.popleft()
                if self._buffer is not None:
                    self._last_frames = block.video.shape[2]
                    self._buffer.add(self._last_frames)
                self._changed.notify_all()
                return block
            if self._error is not None and not self._closed:
                error, self._error = self._error, None
                raise error
        raise StopIteration

    def at_block(self, action: Callable[[AnyStream], Result], *, index: int | None = None) -> "Future[Result]":
        """Do something with the stream between two blocks, when all blocks before are decoded.

        There it may be saved, forked, rewound, or given another prompt. Blocks that are made but not taken yet are
        still handed out.

        Args:
            action: called with the stream, in the thread that denoises, where it may call ``at_block`` itself.
            index: number of the block before which it is called; None, or a block that is begun: the next one.

        Returns:
            What the action returns or raises, later: the iteration does not end by an error of an action. Cancelled if
            the stream ends before.

        Raises:
            StreamError: the stream is at its end or closed, and quiet: call it yourself.
        """
        done: Future = Future()
        with self._changed:
            if self._denoised_all or self._closed:
                raise StreamError("The stream has ended, so no further block follows; use the stream itself now.")
            self._actions.append(_Action(action, index, done))
            self._changed.notify_all()
        return done

    def pause(self, paused: bool = True) -> None:
        """Begin no further block until ``pause(False)``; actions are still done, and what is made is handed out."""
        with self._changed:
            self._paused = paused
            if self._buffer is not None:
                (self._buffer.pause if paused else self._buffer.play)()
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether it waits for ``pause(False)``."""
        return self._paused

    def stop(self) -> None:
        """Begin no further block. What is under way is finished and handed out; then the iteration ends, and the stream
        is quiet: it can be saved."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def close(self) -> None:
        """End both threads and let go of all blocks that were not taken; waits for the passes under way.

        A block that was denoised may stay undecoded then; to end in good order, ``stop`` and iterate to the end.
        """
        with self._changed:
            self._stopping = self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        with self._changed:
            self._latents.clear()
            self._frames.clear()
            self._cancel_actions()

    def _start(self) -> None:
        # In one piece: a close from elsewhere finds threads that run, or none.
        with self._changed:
            if self._threads or self._closed:
                return
            # Threads do not inherit the chosen GPU.
            gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
            # Daemons: a second Ctrl-C does not wait for a pass of minutes.
            for name, target in (("arl2-denoise", self._denoise_all), ("arl2-decode", self._decode_all)):
                thread = threading.Thread(target=target, args=(gpu,), name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self._stopping = self._closed = self._denoised_all = self._decoded_all = True
                    self._changed.notify_all()
                    raise StreamError(
                        f"A thread cannot be started ({error}); end other programs, or raise the limit of processes."
                    ) from error
                self._threads = (*self._threads, thread)

    def _denoise_all(self, gpu: int | None) -> None:
        try:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            with torch.no_grad():
                while self._may_begin() and (block := self._next_block()) is not None:
                    with self._changed:
                        self._latents.append(block)
                        self._changed.notify_all()
                # Requested while the last block was made.
                self._run_actions()
        except Exception as error:
            self._fail(error)
        finally:
            with self._changed:
                self._denoised_all = True
                self._cancel_actions()
                self._changed.notify_all()

    def _may_begin(self) -> bool:
        """Wait for room and do what is due; whether another block is to be denoised."""
        while True:
            self._run_actions()
            with self._changed:
                while not (self._stopping or self._due() or self._at_end() or (seconds := self._early()) == 0):
                    self._wait(seconds)
                if self._closed:
                    return False
                if self._due():
                    continue
                if self._stopping or self._at_end():
                    return False
                if self._buffer is not None:
                    self._buffer.block_begins()
                return True

    def _next_block(self) -> Block | None:
        try:
            return self._stream.latents_next()
        except StopIteration:
            return None

    def _early(self) -> float | None:
        """Seconds before the next block may begin, as far as time decides; None: something must happen first."""
        if self._paused or not self._has_room():
            return None
        if self._buffer is None:
            return 0
        if self._latents or self._decoding or self._frames:
            return None  # a block is under way to the viewer
        return self._buffer.seconds_early(self._last_frames)

    def _wait(self, seconds: float | None) -> None:
        if self._buffer is None:
            self._changed.wait(seconds)
        else:
            self._buffer.wait(self._changed, seconds)

    def _has_room(self) -> bool:
        """Actions let frames out beyond their number; those go first, or many actions would heap them up."""
        return len(self._latents) < self._ahead and len(self._frames) <= self._ahead

    def _at_end(self) -> bool:
        return self._until is not None and self._stream.index >= self._until

    def _due(self) -> list[_Action]:
        return [one for one in self._actions if one.index is None or one.index <= self._stream.index]

    def _run_actions(self) -> None:
        """Those that are due, in the order requested, once the decoder has caught up."""
        while True:
            with self._changed:
                due = self._due()
                if not due or self._closed:
                    return
                self._actions.remove(due[0])
                self._draining = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: not (self._latents or self._decoding) or self._decoded_all)
                self._draining = False
                failed = self._closed or self._error is not None
            if failed:
                due[0].done.cancel()
            elif due[0].done.set_running_or_notify_cancel():
                _run(due[0], self._stream)

    def _decode_all(self, gpu: int | None) -> None:
        try:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            with torch.no_grad():
                while (latents := self._next_latents()) is not None:
                    self._hand_out(self._stream.decode(latents))
        except Exception as error:
            self._fail(error)
        finally:
            with self._changed:
                self._decoding, self._decoded_all = False, True
                self._changed.notify_all()

    def _next_latents(self) -> Block | None:
        with self._changed:
            self._changed.wait_for(lambda: self._latents or self._denoised_all or self._closed)
            if self._closed or not self._latents:
                return None
            self._decoding = True
            block = self._latents.popleft()
            self._changed.notify_all()
            return block

    def _hand_out(self, block: VideoBlock) -> None:
        with self._changed:
            self._decoding = False
            self._changed.notify_all()
            if self._policy != "drop":
                self._changed.wait_for(lambda: len(self._frames) < self._ahead or self._draining or self._closed)
            else:
                while len(self._frames) >= self._ahead:
                    self._drop_oldest()
            if self._cut_next:
                block, self._cut_next = replace(block, cut=True), False
            if not self._closed:
                if self._buffer is not None:
                    self._buffer.block_is_made()
                self._frames.append(block)
                self._changed.notify_all()

    def _drop_oldest(self) -> None:
        """What follows it does not continue what the consumer saw last."""
        lost = self._frames.popleft()
        self._dropped_blocks += 1
        self._dropped_frames += lost.video.shape[2]
        if self._frames:
            self._frames[0] = replace(self._frames[0], cut=True)
        else:
            self._cut_next = True

    def _fail(self, error: Exception) -> None:
        """Keep the first error for the consumer; no further block is begun."""
        with self._changed:
            self._error = self._error or error
            self._stopping = True
            self._changed.notify_all()

    def _cancel_actions(self) -> None:
        for one in self._actions:
            one.done.cancel()
        self._actions.clear()


def _run(action: _Action, stream: BlockStream) -> None:
    """Its result or its error is the future's."""
    try:
        action.done.set_result(action.run(stream))
    except Exception as error:
        action.done.set_exception(error)
