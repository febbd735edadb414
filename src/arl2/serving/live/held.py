"""A stream as its host holds it: what is kept of it, its viewers, and its session while it runs."""

import asyncio
import time
from dataclasses import dataclass, field

from arl2.serving.live.feed import Feed
from arl2.serving.live.history import History
from arl2.serving.live.session import Session
from arl2.serving.live.store import StreamRecord
from arl2.serving.live.wire import Ended, Figures, StreamInfo, StreamState

_PROMPTS = 256  # that an info has at most: it is sent every second


@dataclass(eq=False)
class Held:
    """Everything here belongs to the event loop.

    Attributes:
        record: as it was read first.
        feed: of the session, or of the one that is over.
        history: None: not read yet.
        session: None: it sleeps, or is over.
        lock: held while it wakes, falls asleep, ends or is deleted.
        watchers: viewers now.
        commands: that are being applied.
        used: when it was last watched or given a command, by the monotonic clock.
        deleted: nothing of it is there any more.
    """

    record: StreamRecord
    feed: Feed
    history: History | None = None
    session: Session | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    watchers: int = 0
    commands: int = 0
    used: float = field(default_factory=time.monotonic)
    deleted: bool = False

    @property
    def known(self) -> History:
        """What is kept, once it was read."""
        assert self.history is not None
        return self.history

    @property
    def newest_record(self) -> StreamRecord:
        """As it was written last."""
        return self.record if self.history is None else self.history.record

    @property
    def ended(self) -> Ended | None:
        """What viewers are told of a stream that is over."""
        record = self.newest_record
        if record.state is None:
            return None
        return Ended("end") if record.state == "ended" else Ended("failed", record.error)

    def touch(self) -> None:
        """It is wanted now."""
        self.used = time.monotonic()

    def idle_for(self) -> float:
        """Seconds since anybody wanted it."""
        return 0.0 if self.watchers or self.commands else time.monotonic() - self.used

    def info(self) -> StreamInfo:
        """As lists and pages show it."""
        record, history, session = self.newest_record, self.history, self.session
        state: StreamState = "asleep"
        if record.state is not None:
            state = record.state
        elif session is not None:
            state = "paused" if session.paused else "running"
        prompts = record.prompts or ((record.block, record.request.prompt),)
        block, frame = record.block, record.frame
        if history is not None:
            prompts, block, frame = history.prompts, history.next_block, history.next_frame
        if session is not None:
            block, frame = session.block, session.frame
        return StreamInfo(
            id=record.id,
            state=state,
            request=record.request,
            prompt=prompts[-1][1],
            width=record.width,
            height=record.height,
            fps=record.fps,
            block=block,
            frame=frame,
            first_block=record.block,
            first_frame=record.frame,
            points=() if history is None else history.points,
            prompts=prompts[-_PROMPTS:],
            viewers=self.watchers,
            created=record.created,
            parent=record.parent,
            figures=Figures() if session is None else session.figures,
            warning=None if session is None else session.warning,
            error=record.error,
        )
