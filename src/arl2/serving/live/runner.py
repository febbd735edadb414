"""Sessions begun, continued and woken: what of a host waits for the model or the store, off its event loop."""

import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from arl2.errors import Arl2Error, SnapshotError, StreamError
from arl2.serving.live.history import History, Start, new_point
from arl2.serving.live.maker import SnapshotFacts, StreamMaker
from arl2.serving.live.objects import StoreError
from arl2.serving.live.session import Session
from arl2.serving.live.settings import HostSettings
from arl2.serving.live.source import LiveSource, Opening, prompt_of
from arl2.serving.live.store import StreamRecord, StreamStore
from arl2.serving.live.turns import Turns
from arl2.serving.live.wire import Ended, StreamRequest, UnknownStreamError, WatchItem
from arl2.streams.stream import Stream

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wires:
    """Where a session's items go, from its threads."""

    put: Callable[[WatchItem], None]
    over: Callable[[Session, Ended | None], None]


class Runner:
    """All methods may be called from any thread, and wait.

    Args:
        maker: of streams.
        store: that keeps them.
        settings: of the host.
        turns: of the model.
    """

    def __init__(self, maker: StreamMaker, store: StreamStore, settings: HostSettings, turns: Turns) -> None:
        self.maker, self.store, self._settings, self._turns = maker, store, settings, turns
        # One thread: the points of a stream are written in their order.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="arl2-points")

    def close(self) -> None:
        """Once no session is left: the store, too."""
        self._writer.shutdown()
        self.store.close()

    def create(self, name: str, request: StreamRequest, wires: Wires) -> tuple[History, Session]:
        """A new stream, kept and ready to start; errors as for ``StreamMaker.begin``, ``StoreError``."""
        is_given = request.seed is not None  # drawn ones begin like no other
        request = self.maker.with_seed(request)
        _, checked = self.maker.checked(request)
        factor = self.maker.pipe.codec.spatial_factor
        record = self._record(name, request, factor * checked.shape.height, factor * checked.shape.width)
        opening = self.maker.opening(request, shared=is_given)
        history = History(self.store, record, keep=self._settings.keep_points)
        session = self._session(history, opening, None, wires)  # before it is kept: its size may be refused
        self.store.write(record)
        return history, session

    def resume(
        self, name: str, data: bytes, facts: SnapshotFacts, prompt: str | None, title: str, wires: Wires
    ) -> tuple[History, Session]:
        """A new stream from a snapshot, and what it says of itself.

        Raises:
            SnapshotError: it is damaged, or of another model.
            StoreError: it cannot be kept.
        """
        stream = self.maker.resume(data, prompt)
        height, width = facts.job.height, facts.job.width
        options: dict[str, Any] = {"height": height, "width": width}
        if facts.job.window != self.maker.pipe.settings.window:
            options["window"] = facts.job.window
        if facts.num_frames is not None:
            options["num_frames"] = facts.num_frames
        request = StreamRequest(prompt=prompt_of(stream), seed=facts.seed, options=options, name=title)
        # From 1 on, even if the snapshot is of a beginning: this stream does not begin by its prompt alone.
        record = self._record(name, request, height, width, block=max(1, stream.index))
        return self._adopt(replace(record, frame=stream.video_frames), stream, wires)

    def fork(
        self, name: str, parent: History, stream: Stream, *, block: int, frame: int, seed: int | None, wires: Wires
    ) -> tuple[History, Session]:
        """A new stream that continues another one, which gives its numbers.

        Raises:
            StoreError: it cannot be kept.
        """
        old = parent.record
        if seed is not None:
            with stream:
                stream = stream.fork(seed=seed)
        before = tuple(one for one in parent.prompts if one[0] <= block)
        request = old.request if seed is None else replace(old.request, seed=seed)
        record = replace(
            old,
            id=name,
            created=time.time(),
            request=request,
            parent=old.id,
            paused=False,
            block=block,
            frame=frame,
            prompts=before or ((block, prompt_of(stream)),),
            state=None,
            error=None,
        )
        return self._adopt(record, stream, wires)

    def at_point(self, history: History, block: int | None) -> tuple[Stream, int, int]:
        """A stream at a kept point (None: the newest), with the numbers of its next block and frame.

        Raises:
            StreamError: no such point.
            StoreError: it is damaged.
        """
        if block is None and not history.points:
            raise StreamError("No point of this stream is kept yet.")
        point = history.points[-1] if block is None else history.point_at(block)
        return self.maker.resume(history.data(point.block)), point.block, point.frame

    def wake(self, history: History, after: int | None, wires: Wires) -> Session:
        """A session that continues a stream after a block that a viewer has shown; None: from the newest point.

        Blocks before it that are made again are given to the feed, too: another viewer may not have seen them.

        Raises:
            StreamError: it is another model's, or nothing is whole that it could continue from.
        """
        made_by = history.record.model_hash
        if made_by and made_by != self.maker.model_hash:
            raise StreamError(
                f"This stream is of weights with the hash {made_by}, but this server has {self.maker.model_hash}; "
                "start the server with the model that made it, or delete the stream."
            )
        every = self._settings.point_every
        known = max(history.next_block, history.last_command_block)
        if after is not None and after > known + self._settings.most_unknown:
            after = None
        last = after
        if after in (None, -1) and history.record.paused and history.next_block > 1:
            # Its last block is shown again: who looks at a pause sees a picture.
            after, last = history.next_block - 2, history.next_block - 1
        failed: list[str] = []
        for start in history.starts(after, most_again=2 * every):
            session = None
            try:
                session = self._session(history, self._opening(history, start), start, wires)
                if last is not None:
                    session.catch_up(last)
            except BaseException as error:
                if session is not None:
                    session.close()
                if not isinstance(error, StoreError | SnapshotError | UnknownStreamError):
                    raise
                logger.warning("stream %s: %s", history.record.id, error)
                failed.append(str(error))
            else:
                return session
        because = f" ({failed[0]})" if failed else ""
        raise StreamError(f"Nothing is kept that this stream could continue from{because}.")

    def _opening(self, history: History, start: Start) -> Opening:
        if start.point is None:
            return self.maker.opening(history.record.request, shared=False)
        stream = self.maker.resume(history.data(start.point.block))
        return lambda: (stream, None)

    def _adopt(self, record: StreamRecord, stream: Stream, wires: Wires) -> tuple[History, Session]:
        """A stream in mid-course: it is kept with a point of now."""
        history = History(self.store, record, keep=self._settings.keep_points)
        session = self._session(history, lambda: (stream, None), None, wires)
        self.store.write(record)
        point = new_point(block=record.block, frame=record.frame, index=stream.index, prompt=prompt_of(stream), entry=0)
        try:
            history.add_point(point, stream.save_bytes("exact"))
        except Arl2Error:
            self.store.delete(record.id)
            raise
        return history, session

    def _session(self, history: History, opening: Opening, start: Start | None, wires: Wires) -> Session:
        record, point = history.record, None if start is None else start.point
        blocks = record.request.blocks
        source = LiveSource(
            opening,
            block=record.block if point is None else point.block,
            frame=record.frame if point is None else point.frame,
            turns=self._turns,
            end=None if blocks is None else record.block + blocks,
        )
        return Session(
            source,
            history,
            self._settings,
            resume=self.maker.resume,
            put=wires.put,
            over=wires.over,
            writer=self._writer,
            replay=() if start is None else start.entries,
        )

    def _record(
        self, name: str, request: StreamRequest, height: int, width: int, *, block: int = 0, frame: int = 0
    ) -> StreamRecord:
        scale = self._settings.scale
        return StreamRecord(
            id=name,
            created=time.time(),
            request=request,
            model_hash=self.maker.model_hash,
            width=scale * width,
            height=scale * height,
            fps=self.maker.pipe.settings.fps,
            block=block,
            frame=frame,
        )


def new_name() -> str:
    """Of a stream: nobody guesses it."""
    return secrets.token_hex(8)
