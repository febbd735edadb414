"""HTTP Live Streaming of live streams, for Safari, televisions and players: a playlist and mp4 segments, in memory.

Segments are made of the frames that are encoded already. They are numbered by their blocks, so that a player continues
over a restart of the server, and finds the same segments at every server of a cluster.
"""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Request, Response

from arl2.errors import Arl2Error
from arl2.serving.live.wire import (
    BlockHead,
    DrainingError,
    EncodedFrame,
    Ended,
    NoRoomError,
    StreamHost,
    StreamInfo,
    UnknownStreamError,
)
from arl2.serving.web.metrics import Metrics
from arl2.serving.web.watching import watched
from arl2.video.fragments import FragmentedMp4

SEGMENT_SECONDS = 2.0
KEPT_SEGMENTS = 8
IDLE_SECONDS = 30.0  # without a request, after which a stream is followed no more
_BEGIN_SECONDS = 15.0
_PLAYLIST, _MP4 = "application/vnd.apple.mpegurl", "video/mp4"


@dataclass(frozen=True)
class Segment:
    """Some blocks.

    Attributes:
        number: of the segment; its first block, divided by the blocks of a segment.
        seconds: that it shows.
        released: seconds since 1970 when its first frame was.
        gap: frames are missing before it.
        data: fragments.
    """

    number: int
    seconds: float
    released: float
    gap: bool
    data: bytes


class Segments:
    """The newest segments of one stream, as frames of whole blocks come in.

    Args:
        info: of the stream.
        blocks: of a segment.
    """

    def __init__(self, info: StreamInfo, blocks: int) -> None:
        self._fps, self._blocks = info.fps, blocks
        self._mp4 = FragmentedMp4(width=info.width, height=info.height, fps=info.fps)
        self.kept: OrderedDict[int, Segment] = OrderedDict()
        self.ended = False
        self._head: BlockHead | None = None
        self._frames: list[EncodedFrame] = []
        self._begun: list[tuple[BlockHead, bytes, float]] = []  # blocks of the next segment
        self._next_frame: int | None = None

    @property
    def init_segment(self) -> bytes:
        """What every segment needs before it; there is one once there is a segment."""
        return self._mp4.init_segment

    def begin(self, head: BlockHead) -> None:
        """A block's frames follow."""
        self._head, self._frames = head, []

    def add(self, frame: EncodedFrame) -> bool:
        """A frame; whether a segment is whole with it."""
        head = self._head
        if head is None or frame.block != head.block:
            return False
        self._frames.append(frame)
        if len(self._frames) < head.frames:
            return False
        self._head = None
        follows = bool(self._begun) and self._begun[-1][0].block + 1 == head.block
        if not follows:
            self._begun = []
            if head.block % self._blocks:  # it began before this was followed
                return False
        fragment = self._mp4.fragment_of([(one.data, one.key) for one in self._frames], first=head.frame)
        self._begun.append((head, fragment, self._frames[0].released))
        if len(self._begun) < self._blocks:
            return False
        self._finish()
        return True

    def _finish(self) -> None:
        heads = [head for head, _, _ in self._begun]
        frames = sum(head.frames for head in heads)
        number = heads[0].block // self._blocks
        gap = self._next_frame is not None and heads[0].frame != self._next_frame
        data = b"".join(fragment for _, fragment, _ in self._begun)
        self.kept[number] = Segment(number, frames / self._fps, self._begun[0][2], gap, data)
        if gap:  # numbers in a playlist run on
            for old in [one for one in self.kept if one < number]:
                del self.kept[old]
        while len(self.kept) > KEPT_SEGMENTS:
            self.kept.popitem(last=False)
        self._next_frame = heads[-1].frame + heads[-1].frames
        self._begun = []

    def playlist(self, query: str = "") -> str:
        """The playlist.

        Args:
            query: what the addresses in it end with, such as ``?key=...``.
        """
        segments = list(self.kept.values())
        longest = max([SEGMENT_SECONDS, *(one.seconds for one in segments)])
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:7",
            f"#EXT-X-TARGETDURATION:{math.ceil(longest)}",
            f"#EXT-X-MEDIA-SEQUENCE:{segments[0].number if segments else 0}",
            "#EXT-X-INDEPENDENT-SEGMENTS",
            f'#EXT-X-MAP:URI="init.mp4{query}"',
        ]
        for one in segments:
            if one.gap:
                lines.append("#EXT-X-DISCONTINUITY")
            date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(one.released))
            lines.append(f"#EXT-X-PROGRAM-DATE-TIME:{date}.{int(one.released % 1 * 1000):03}Z")
            lines += [f"#EXTINF:{one.seconds:.4f},", f"{one.number}.m4s{query}"]
        if self.ended:
            lines.append("#EXT-X-ENDLIST")
        return "\n".join(lines) + "\n"


class Follower:
    """Follows one stream while somebody asks for its segments; counts as one viewer."""

    def __init__(self, host: StreamHost, info: StreamInfo, blocks: int, over: Callable[["Follower"], None]) -> None:
        self._host, self._stream, self._over = host, info.id, over
        self.segments = Segments(info, blocks)
        self.error: Arl2Error | None = None
        self._asked, self._asking = time.monotonic(), 0
        self._changed = asyncio.Event()
        self._follows = asyncio.create_task(self._follow())
        self._waits = asyncio.create_task(self._tire())

    async def ready(self) -> Segments:
        """The segments, once there is one.

        Raises:
            Arl2Error: what the host said; ``NoRoomError`` where no segment comes.
        """
        self._asking += 1
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _BEGIN_SECONDS)
        finally:
            self._asking -= 1
            self._asked = time.monotonic()
        if self.segments.kept:
            return self.segments
        raise self.error or NoRoomError("The stream shows nothing now; ask again when it is played.", retry_after=5)

    def touch(self) -> Segments:
        """Somebody asks for a part."""
        self._asked = time.monotonic()
        return self.segments

    async def _follow(self) -> None:
        try:
            async with watched(self._host, self._stream, None) as items:
                async for item in items:
                    if isinstance(item, BlockHead):
                        self.segments.begin(item)
                    elif isinstance(item, EncodedFrame) and self.segments.add(item):
                        self._changed.set()
                    elif isinstance(item, Ended):
                        self.segments.ended = item.reason != "draining"
                        return
        except Arl2Error as error:
            self.error = error
        finally:
            self._changed.set()

    async def _tire(self) -> None:
        while (left := self._asked + IDLE_SECONDS - time.monotonic()) > 0 or self._asking:
            await asyncio.sleep(max(left, 0.01 * IDLE_SECONDS))
        self._follows.cancel()
        await asyncio.gather(self._follows, return_exceptions=True)
        self._over(self)


def hls_router(host: StreamHost, block_seconds: float, metrics: Metrics) -> APIRouter:
    """``hls/index.m3u8`` of a stream, and what it names.

    Args:
        host: has the streams.
        block_seconds: of video in a block; 0: unknown.
        metrics: count what is sent.
    """
    router = APIRouter(prefix="/v1/streams/{stream}/hls", tags=["players"])
    followed: dict[str, Follower] = {}
    blocks = max(1, round(SEGMENT_SECONDS / block_seconds)) if block_seconds else 1
    how: dict[str, Any] = {"response_class": Response}

    def found(stream: str) -> Segments:
        if stream not in followed:
            raise UnknownStreamError(f"Nothing of stream '{stream:.64}' is kept as segments; ask for index.m3u8 first.")
        return followed[stream].touch()

    def forget(follower: Follower) -> None:
        for stream in [one for one, other in followed.items() if other is follower]:
            del followed[stream]

    def sent(data: bytes) -> Response:
        metrics.sent.labels("hls").inc(len(data))
        return Response(data, media_type=_MP4)

    @router.get("/index.m3u8", responses={200: {"content": {_PLAYLIST: {}}}}, **how)
    async def playlist(request: Request, stream: Annotated[str, Path()]) -> Response:
        """The playlist; the first request begins to follow the stream."""
        info = await host.info(stream)
        if stream not in followed:
            followed[stream] = Follower(host, info, blocks, forget)
        follower = followed[stream]
        try:
            segments = await follower.ready()
        except (DrainingError, NoRoomError, UnknownStreamError):
            if followed.get(stream) is follower and follower.error is not None:
                del followed[stream]
            raise
        key = request.query_params.get("key")
        return Response(segments.playlist("" if key is None else f"?key={quote(key, safe='')}"), media_type=_PLAYLIST)

    @router.get("/init.mp4", **how)
    async def init(stream: Annotated[str, Path()]) -> Response:
        """What every segment needs before it."""
        return sent(found(stream).init_segment)

    @router.get("/{number}.m4s", **how)
    async def segment(stream: Annotated[str, Path()], number: int) -> Response:
        """Some seconds of video."""
        one = found(stream).kept.get(number)
        if one is None:
            raise UnknownStreamError(f"Segment {number} is not kept any more, or not made yet; read index.m3u8 again.")
        return sent(one.data)

    return router
