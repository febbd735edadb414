"""Commands to a running stream, each with two receipts: ``queued``, then ``applied`` with its block, or ``refused``.

A person who has typed a prompt is to know that it is coming, and then from which block on the video shows it.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from arl2.errors import Arl2Error
from arl2.rollout.settings import ChangeMode
from arl2.serving.keep_up import KeepUp
from arl2.streams.options import Seeds
from arl2.streams.state import SnapshotKind
from arl2.streams.stream import Stream

Kind = Literal["prompt", "rewind", "fork", "pause", "play", "snapshot"]
ReceiptState = Literal["queued", "applied", "refused"]
_OVER = "The stream has ended before; begin another, or resume a snapshot of it."


@dataclass(frozen=True)
class Receipt:
    """What became of a command.

    Attributes:
        number: of the command, counted from 1 in the order they were given.
        kind: what it does.
        state: where it is.
        block: of ``applied``: the first block that is made with it (of a snapshot or a fork: the first one that it
            continues with).
        error: of ``refused``: a sentence. The stream continues as if the command had not been given.
    """

    number: int
    kind: Kind
    state: ReceiptState
    block: int | None = None
    error: str | None = None


class Commands:
    """Gives commands to a stream that a ``KeepUp`` runs; any thread may call.

    Every command returns at once. What it returns is a future with its result, done before its last receipt is told.

    Args:
        keep: runs the stream.
        told: gets every receipt, in order for each command. ``queued`` is told by the calling thread, the last one by
            the thread that did it; it must not wait for the stream.
    """

    def __init__(self, keep: KeepUp[Stream], told: Callable[[Receipt], None]) -> None:
        self._keep, self._told = keep, told
        self._numbers = itertools.count(1)
        self._giving = threading.RLock()  # a receipt may lead to the next command

    def change_prompt(self, prompt: str | Sequence[str], mode: ChangeMode | None = None) -> "Future[None]":
        """Another prompt from the next block on; refused as by ``Stream.change_prompt``."""
        return self._give("prompt", lambda stream: stream.change_prompt(prompt, mode=mode))

    def rewind(self, blocks: int = 1, *, seed: Seeds = None) -> "Future[None]":
        """Go back before the last blocks that were made; the block that follows says ``cut``."""
        return self._give("rewind", lambda stream: stream.rewind(blocks, seed=seed))

    def fork(self, *, seed: Seeds = None) -> "Future[Stream]":
        """A second stream that continues from here; it belongs to the caller."""
        return self._give("fork", lambda stream: stream.fork(seed=seed))

    def pause(self) -> "Future[None]":
        """Begin no further block after the one under way."""
        return self._give("pause", lambda _: self._keep.pause())

    def play(self) -> "Future[None]":
        """The end of a pause."""
        return self._give("play", lambda _: self._keep.pause(False))

    def snapshot(self, kind: SnapshotKind = "exact") -> "Future[bytes]":
        """The bytes of a snapshot, for ``ARL2Pipeline.resume_bytes``.

        The stream waits only until it is forked, a fraction of a millisecond; a thread of its own writes the fork.
        """
        return self._give("snapshot", lambda stream: stream.fork(), lambda twin: _saved(twin, kind))

    def _give(
        self, kind: Kind, do: Callable[[Stream], Any], later: Callable[[Any], Any] | None = None
    ) -> "Future[Any]":
        """Queue a command; ``later`` works on what ``do`` returned, on another thread."""
        result: Future = Future()
        result.set_running_or_notify_cancel()  # what is queued cannot be taken back: it gets its last receipt
        # One after the other: their numbers are the order in which they take effect.
        with self._giving:
            number = next(self._numbers)

            def act(stream: Stream) -> tuple[int, Any]:
                done = do(stream)
                return stream.index, done

            def end(applied: "Future[tuple[int, Any]]") -> None:
                if applied.cancelled():
                    self._finish(result, number, kind, error=Arl2Error(_OVER))
                elif (error := applied.exception()) is not None:
                    self._finish(result, number, kind, error=error)
                elif later is None:
                    block, done = applied.result()
                    self._finish(result, number, kind, block=block, done=done)
                else:
                    block, done = applied.result()
                    work = (result, number, kind, block, lambda: later(done))
                    threading.Thread(target=self._work, args=work, name=f"arl2-{kind}", daemon=True).start()

            self._told(Receipt(number, kind, "queued"))
            try:
                applied = self._keep.at_block(act)
            except Arl2Error as error:
                self._finish(result, number, kind, error=error)
            else:
                applied.add_done_callback(end)
        return result

    def _work(self, result: Future, number: int, kind: Kind, block: int, work: Callable[[], Any]) -> None:
        try:
            done = work()
        except Exception as error:
            self._finish(result, number, kind, error=error)
        else:
            self._finish(result, number, kind, block=block, done=done)

    def _finish(
        self,
        result: Future,
        number: int,
        kind: Kind,
        *,
        block: int | None = None,
        done: Any = None,
        error: BaseException | None = None,
    ) -> None:
        """Result and last receipt. A fault of ours is no refusal: its sentence would say nothing to a person."""
        if error is None:
            result.set_result(done)
            self._told(Receipt(number, kind, "applied", block=block))
            return
        said = str(error) if isinstance(error, Arl2Error) else f"This failed ({type(error).__name__}: {error})."
        result.set_exception(error)
        self._told(Receipt(number, kind, "refused", error=said))


def _saved(twin: Stream, kind: SnapshotKind) -> bytes:
    with twin:
        return twin.save_bytes(kind)
