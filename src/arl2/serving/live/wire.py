"""What a server of live streams and its viewers say to each other, and what a host of streams can do.

Nothing here loads torch or a web framework. Everything is plain data that can be pickled, so that a host may live in
another process. Blocks of a live stream are counted in the order in which they are shown: their numbers never go back,
even where the stream is rewound. ``index`` is a block's place in the model's stream, which a rewind sets back.
"""

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from arl2.errors import Arl2Error
from arl2.model.settings import ChangeMode

if TYPE_CHECKING:
    from arl2.streams.state import SnapshotKind

StreamState = Literal["running", "paused", "asleep", "ended", "failed"]
Action = Literal["prompt", "pause", "play", "rewind", "fork"]
ReceiptState = Literal["queued", "applied", "refused"]
ACTIONS: tuple[Action, ...] = ("prompt", "pause", "play", "rewind", "fork")
# Before the data of every frame on a socket: block, frame, flags (bit 0: key frame), two bytes for later, seconds since
# 1970 when it was released. Network byte order.
FRAME_HEADER = struct.Struct("!IQHHd")
KEY = 1


class UnknownStreamError(Arl2Error):
    """No stream, video or point of that name."""


class NoRoomError(Arl2Error):
    """A stream for which there is no memory now.

    Args:
        message: says what would fit.
        retry_after: seconds after which asking again makes sense.
        told: of a command: viewers have got its receipt ``refused`` already.
    """

    def __init__(self, message: str, retry_after: float = 10.0, told: bool = False) -> None:
        super().__init__(message)
        self.retry_after, self.told = retry_after, told

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.retry_after, self.told)


class DrainingError(Arl2Error):
    """The server is about to end, and begins nothing any more."""


@dataclass(frozen=True, kw_only=True)
class StreamRequest:
    """A stream to begin.

    Attributes:
        prompt: what it shows first.
        seed: None: the host draws one.
        options: sampling options by name, as ``SamplingKeywords``: plain values.
        realtime: paced like a video that is watched, and made just in time; otherwise as fast as it can be made.
        blocks: it ends after so many; None: never.
        name: free text of the caller, for lists.
    """

    prompt: str
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    realtime: bool = True
    blocks: int | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Something to do with a stream, between two blocks.

    Attributes:
        action: what.
        key: the caller's own name for it; comes back in its receipts.
        prompt, mode: of "prompt"; mode None: as the model's settings say.
        block: of "rewind" and "fork": the kept point to go back to, or to fork at; None: of a fork, now.
        blocks: of "rewind", in place of ``block``: how many blocks to go back at least, to the nearest kept point.
        seed: of "rewind" and "fork": for another continuation; None: the same noise.
        nonce: drawn by the front of a cluster for this one command, so that it is known again where it is given to
            another worker after the first was lost. Clients cannot set it.
    """

    action: Action
    key: str = ""
    prompt: str | None = None
    mode: ChangeMode | None = None
    block: int | None = None
    blocks: int | None = None
    seed: int | None = None
    nonce: str = ""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a command: first ``queued``, then ``applied`` or ``refused``. Every viewer gets both.

    Attributes:
        stream: its name.
        action, key: of the command.
        state: where it is.
        block: of ``applied``: the first block that is made with it.
        to: of a rewind: the point that it went back to.
        fork: of a fork: name of the new stream.
        error: of ``refused``: a sentence.
    """

    stream: str
    action: Action
    key: str
    state: ReceiptState
    block: int | None = None
    to: int | None = None
    fork: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A snapshot that is kept: a stream can be rewound to it, forked at it, and woken from it.

    Attributes:
        block: the next block after it.
        frame: the next frame.
        index: of that block in the model's stream.
        prompt: that the stream had.
        made: seconds since 1970.
        entry: commands of the journal up to this number that apply before that very block are in it; 0: none is.
    """

    block: int
    frame: int
    index: int
    prompt: str
    made: float
    entry: int = 0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How a stream is doing; averages over its last blocks.

    Attributes:
        block_seconds: to make a block; 0 before the first.
        frames_a_second: as made.
        share: of real time that making takes: block_seconds over the seconds that a block shows.
        memory_bytes: that the stream holds.
        sent_bytes: encoded, in all.
    """

    block_seconds: float = 0.0
    frames_a_second: float = 0.0
    share: float = 0.0
    memory_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """A stream as lists and pages show it.

    Attributes:
        id: its name.
        state: "asleep" streams wake when they are asked for anything.
        request: as it was begun; its seed is always there.
        prompt: now.
        width, height, fps: of its video.
        block, frame: the next ones.
        first_block, first_frame: those that it began with: 0, or of a fork or an uploaded snapshot more.
        points: kept, oldest first.
        prompts: the last of those that it has had and the block at which each begins, oldest first.
        viewers: watching now.
        created: seconds since 1970.
        parent: the stream that it was forked from.
        figures: how it is doing.
        error: of "failed": a sentence.
        warning: what does not work at present although it runs on, such as a store that takes no points: a sentence.
    """

    id: str
    state: StreamState
    request: StreamRequest
    prompt: str
    width: int
    height: int
    fps: int
    block: int
    frame: int
    first_block: int = 0
    first_frame: int = 0
    points: tuple[Point, ...] = ()
    prompts: tuple[tuple[int, str], ...] = ()
    viewers: int = 0
    created: float = 0.0
    parent: str | None = None
    figures: Figures = field(default_factory=Figures)
    error: str | None = None
    warning: str | None = None


@dataclass(frozen=True, kw_only=True)
class BlockHead:
    """Comes before a block's frames.

    Attributes:
        block, index: its numbers.
        frame: number of its first frame, which never goes back either.
        frames: how many follow.
        cut: the picture does not continue the one before.
        prompt: that it was made with.
        denoise_seconds, commit_seconds, decode_seconds: how long it took.
        digest: BLAKE2b (16 bytes, hexadecimal) of its RGB bytes: equal where the same computation ran.
        codec: as browsers ask for it, such as ``avc1.64000c``.
        skipped: blocks before it that this viewer was too slow for, or that are no longer kept.
    """

    block: int
    index: int
    frame: int
    frames: int
    cut: bool
    prompt: str
    denoise_seconds: float
    commit_seconds: float
    decode_seconds: float
    digest: str
    codec: str
    skipped: int = 0


@dataclass(frozen=True)
class EncodedFrame:
    """A frame, encoded once for everybody. The first one of every block is a key frame with its parameter sets.

    Attributes:
        block, frame: its numbers.
        key: whether it can be decoded alone.
        data: H.264, Annex-B.
        released: seconds since 1970 when it was given to the viewers.
    """

    block: int
    frame: int
    key: bool
    data: bytes
    released: float

    def message(self) -> bytes:
        """As it goes over a socket."""
        return FRAME_HEADER.pack(self.block, self.frame, KEY if self.key else 0, 0, self.released) + self.data


@dataclass(frozen=True)
class Ended:
    """Nothing follows: the stream is at its end, was deleted, or failed with an error."""

    reason: Literal["end", "deleted", "failed", "draining"]
    error: str | None = None


WatchItem = BlockHead | EncodedFrame | Receipt | StreamInfo | Ended


@runtime_checkable
class StreamHost(Protocol):
    """Holds streams; called on an event loop. ``LocalHost`` runs them in this process, ``ClusterHost`` in others.

    Methods with the name of a stream raise ``UnknownStreamError``, those that begin something ``NoRoomError`` and
    ``DrainingError``; what a person gave and is wrong raises another ``Arl2Error``.
    """

    async def create(self, request: StreamRequest) -> StreamInfo:
        """Begin a stream."""

    async def resume(self, snapshot: bytes, *, prompt: str | None = None, name: str = "") -> StreamInfo:
        """Begin a stream from the bytes of a snapshot."""

    async def streams(self) -> list[StreamInfo]:
        """All streams, those asleep too, oldest first."""

    async def info(self, stream: str) -> StreamInfo:
        """One stream, as it is; does not wake it."""

    async def delete(self, stream: str) -> None:
        """End a stream, and remove what is kept of it."""

    async def give(self, stream: str, command: Command) -> Receipt:
        """Give a command, and wait for its last receipt: at most a block. Wakes a stream."""

    async def snapshot(self, stream: str, kind: "SnapshotKind" = "exact", block: int | None = None) -> bytes:
        """Of now, or of a kept point."""

    def watch(self, stream: str, *, after: int | None = None) -> AsyncIterator[WatchItem]:
        """What a viewer gets: for every block its head, then its frames; receipts and, about once a second, the
        stream's info between them. Wakes the stream; counts as a viewer until the iterator is closed.

        Args:
            stream: its name.
            after: the last block that the viewer has shown; -1: all that are kept; None: from the newest one on.
        """

    async def recent(self, stream: str) -> list[tuple[BlockHead, list[EncodedFrame]]]:
        """Whole blocks that are still kept, oldest first: for downloads. Does not wake the stream."""

    async def ready(self) -> bool:
        """Whether a warm block was made, and nothing is draining."""

    async def drain(self) -> None:
        """Begin nothing any more; let every stream finish its block, save it, and end its viewers with "draining"."""

    async def close(self) -> None:
        """After ``drain``: let go of everything."""


@runtime_checkable
class SharedHost(StreamHost, Protocol):
    """A host beside others on one store (``StreamStore(shared=True)``): the worker of a cluster.

    What it does not run, another may: it reads such a stream from the store whenever it is asked for it, and keeps
    nothing of it in memory.
    """

    async def create(self, request: StreamRequest, *, stream: str | None = None) -> StreamInfo:
        """Begin a stream; under the name ``stream``, which the caller has drawn, so that it is found again."""

    async def resume(
        self, snapshot: bytes, *, prompt: str | None = None, name: str = "", stream: str | None = None
    ) -> StreamInfo:
        """Begin a stream from the bytes of a snapshot, under a name of the caller's, too."""

    def running(self) -> list[StreamInfo]:
        """The streams that this host holds in memory: those that it runs, paused ones too."""

    async def let_go(self, stream: str) -> None:
        """Somebody else runs it from now on: finish the block under way, save a point, end its viewers with
        "draining" and forget it; the store is not written any more. Nothing happens if it does not run here."""
