"""Video for players and tools: a live mp4 that does not end, and what is kept of a stream as one file."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from arl2.errors import StreamError
from arl2.serving.live.wire import EncodedFrame, StreamHost
from arl2.serving.web.fragments import Shelf, whole_mp4
from arl2.serving.web.metrics import Metrics
from arl2.serving.web.watching import watched

_MP4 = "video/mp4"


def players_router(host: StreamHost, shelf: Shelf, metrics: Metrics) -> APIRouter:
    """``live.mp4`` and ``video.mp4`` of a stream."""
    router = APIRouter(prefix="/v1/streams/{stream}", tags=["players"])

    @router.get("/live.mp4", response_class=StreamingResponse, responses={200: {"content": {_MP4: {}}}})
    async def live(stream: str = Path(), after: int | None = Query(None, ge=-1)) -> StreamingResponse:
        """Fragmented mp4 as the stream is made, for ffplay, VLC and OBS: ``ffplay http://.../live.mp4``."""
        info = await host.info(stream)

        stack = AsyncExitStack()
        shared = stack.enter_context(shelf.of(info))
        # What is refused is an answer; afterwards it could only be an end.
        items = await stack.enter_async_context(watched(host, stream, after))

        async def fragments() -> AsyncIterator[bytes]:
            begun = False
            async for item in items:
                if isinstance(item, EncodedFrame):
                    data = shared.fragment(item)
                    if not begun:
                        data, begun = shared.init_segment + data, True
                    metrics.sent.labels("live.mp4").inc(len(data))
                    yield data

        return _Live(fragments(), stack)

    @router.get("/video.mp4", response_class=StreamingResponse, responses={200: {"content": {_MP4: {}}}})
    async def video(stream: str = Path()) -> StreamingResponse:
        """The blocks that are still kept, as one mp4."""
        info, blocks = await host.info(stream), await host.recent(stream)
        if not blocks:
            raise StreamError("No block of this stream is kept now; watch it, and ask again.")
        data = list(whole_mp4(info, blocks))
        metrics.sent.labels("video.mp4").inc(sum(map(len, data)))
        first, last = blocks[0][0].block, blocks[-1][0].block
        headers = {
            "Content-Length": str(sum(map(len, data))),
            "Content-Disposition": f'attachment; filename="{info.id}-{first}-{last}.mp4"',
        }
        return StreamingResponse(iter(data), media_type=_MP4, headers=headers)

    return router


class _Live(StreamingResponse):
    """Closes what it was made with, also where the client goes away before the first byte."""

    media_type = _MP4

    def __init__(self, content: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        super().__init__(content)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)
