"""``WS /v1/streams/{id}/live``: a viewer's socket, which carries video one way and control both ways.

The server sends text messages with a ``type`` and binary ones with video; the names are those of vLLM-Omni's realtime
video protocol where it has the thing.
"""

import asyncio
import time
from contextlib import ExitStack
from typing import Any, Literal

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from arl2.errors import Arl2Error, ConfigError
from arl2.serving.live.wire import (
    FRAME_HEADER,
    KEY,
    BlockHead,
    Command,
    DrainingError,
    EncodedFrame,
    Ended,
    NoRoomError,
    Receipt,
    StreamHost,
    StreamInfo,
    UnknownStreamError,
    WatchItem,
)
from arl2.serving.web.fragments import SharedFragments, Shelf
from arl2.serving.web.messages import Interaction, info_message, message, plain, read_message, receipt_message
from arl2.serving.web.metrics import Metrics
from arl2.serving.web.settings import WebSettings
from arl2.serving.web.watching import watched

Format = Literal["h264", "mp4"]
DONE, DRAINING, REFUSED, BINARY, FULL, UNKNOWN, FAULT = 1000, 1012, 1008, 1003, 1013, 4404, 1011
MOST_ERRORS = 100  # of one socket, after which nobody sensible is there


def socket_router(host: StreamHost, settings: WebSettings, shelf: Shelf, metrics: Metrics) -> APIRouter:
    """The route of the sockets."""
    router, open_now = APIRouter(), 0

    @router.websocket("/v1/streams/{stream}/live")
    async def live(socket: WebSocket, stream: str) -> None:
        nonlocal open_now
        await socket.accept()
        if open_now >= settings.most_sockets:
            await _refuse(socket, FULL, f"All {settings.most_sockets} sockets are in use; try again later.")
            return
        open_now += 1
        metrics.sockets.inc()
        try:
            after, kind = _asked(socket)
            await _Viewer(socket, stream, host, settings, shelf, metrics, kind).serve(after)
        except UnknownStreamError as error:
            await _refuse(socket, UNKNOWN, str(error))
        except NoRoomError as error:  # this and the next pass by: the viewer tries again
            await _refuse(socket, FULL, str(error))
        except DrainingError as error:
            await _refuse(socket, DRAINING, str(error))
        except Arl2Error as error:
            await _refuse(socket, REFUSED, str(error))
        except WebSocketDisconnect:
            return
        finally:
            open_now -= 1
            metrics.sockets.dec()

    return router


def _asked(socket: WebSocket) -> tuple[int | None, Format]:
    """The last block that the viewer has shown, and the format it wants."""
    after, kind = socket.query_params.get("after"), socket.query_params.get("format", "h264")
    if kind not in ("h264", "mp4"):
        raise ConfigError(f"Got format {kind!r:.40}; give h264 or mp4.")
    if after is None or after == "":
        return None, kind  # type: ignore[return-value]  # checked above
    try:
        number = int(after)
    except ValueError:
        number = -2
    if not -1 <= number < 1 << 31:
        raise ConfigError(f"Got after {after!r:.40}; give the last block that was shown, or -1 for all that are kept.")
    return number, kind  # type: ignore[return-value]  # checked above


async def _refuse(socket: WebSocket, code: int, said: str) -> None:
    if socket.client_state is WebSocketState.CONNECTED and socket.application_state is WebSocketState.CONNECTED:
        try:
            await socket.send_text(message("error", message=said))
            await socket.close(code)
        except (WebSocketDisconnect, RuntimeError):
            return  # gone before it could be told


class _Viewer:
    """One socket from its first message to its last."""

    def __init__(
        self,
        socket: WebSocket,
        stream: str,
        host: StreamHost,
        settings: WebSettings,
        shelf: Shelf,
        metrics: Metrics,
        kind: Format,
    ) -> None:
        self._socket, self._stream, self._host = socket, stream, host
        self._settings, self._shelf, self._kind = settings, shelf, kind
        self._sent = metrics.sent.labels(f"socket {kind}")
        self._head: BlockHead | None = None
        self._codec = ""
        self._commands: set[asyncio.Task[None]] = set()
        self._errors = 0

    async def serve(self, after: int | None) -> None:
        """Send and read until one of both sides has enough."""
        info = await self._host.info(self._stream)
        await self._say("session.start", stream=plain(info), format=self._kind, time=time.time())
        with ExitStack() as stack:
            shared = stack.enter_context(self._shelf.of(info)) if self._kind == "mp4" else None
            # The viewer is one, and the stream woken, before it is heard: its first command finds a stream that runs.
            async with watched(self._host, self._stream, after) as items:
                sides = [
                    asyncio.create_task(self._send(items, info, shared)),
                    asyncio.create_task(self._read()),
                ]
                try:
                    done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (*sides, *self._commands):
                        task.cancel()
                    await asyncio.gather(*sides, *self._commands, return_exceptions=True)
        if self._socket.application_state is WebSocketState.CONNECTED:  # otherwise one side has said all
            for task in done:
                task.result()

    async def _say(self, kind: str, **more: Any) -> None:
        await self._socket.send_text(message(kind, **more))

    # -- to the viewer -------------------------------------------------------------------------------------------

    async def _send(self, items: Any, info: StreamInfo, shared: SharedFragments | None) -> None:
        item: WatchItem
        async for item in items:
            if isinstance(item, EncodedFrame):
                await self._frame(item, info, shared)
            elif isinstance(item, BlockHead):
                self._head = item
            elif isinstance(item, Receipt):
                await self._socket.send_text(receipt_message(item))
            elif isinstance(item, StreamInfo):
                await self._socket.send_text(info_message(item, time.time()))
            else:
                await self._done(item)
                return
        await self._done(Ended("end"))

    async def _frame(self, frame: EncodedFrame, info: StreamInfo, shared: SharedFragments | None) -> None:
        data = frame.message() if shared is None else _header(frame) + shared.fragment(frame)
        head, self._head = self._head, None
        if head is not None:
            if head.codec != self._codec:
                self._codec = head.codec
                size = {"width": info.width, "height": info.height, "fps": info.fps}
                await self._say("video.start", codec=head.codec, format=self._kind, **size)
                if shared is not None:
                    await self._socket.send_bytes(shared.init_segment)
            await self._say("video.chunk_metadata", **plain(head))
        self._sent.inc(len(data))
        await self._socket.send_bytes(data)

    async def _done(self, ended: Ended) -> None:
        await self._say("done", reason=ended.reason, error=ended.error)
        await self._socket.close(DRAINING if ended.reason == "draining" else DONE, ended.reason)

    # -- from the viewer -----------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            received = await self._socket.receive()
            if received["type"] == "websocket.disconnect":
                return
            text = received.get("text")
            if text is None:
                await _refuse(self._socket, BINARY, "Only the server sends binary messages; send JSON as text.")
                return
            if not await self._take(text):
                return

    async def _take(self, text: str) -> bool:
        """Do what a message says; False where it was the last one."""
        try:
            read = read_message(text)
            if isinstance(read, Interaction):
                self._begin(read)
            elif read["type"] == "ping":
                await self._say("pong", time=time.time(), sent=read.get("sent"))
            else:
                await self._say("done", reason="stop", error=None)
                await self._socket.close(DONE, "stop")
                return False
        except Arl2Error as error:
            self._errors += 1
            if self._errors >= MOST_ERRORS:
                await _refuse(self._socket, REFUSED, "Too many messages that are none; see docs/serving.md.")
                return False
            await self._say("error", message=str(error))
        return True

    def _begin(self, asked: Interaction) -> None:
        """Give a command; receipts of the host go to all viewers, what it never takes is refused to this one."""
        if len(self._commands) >= self._settings.most_waiting:
            raise ConfigError(f"{len(self._commands)} commands wait for their receipts; wait for one of them.")
        task = asyncio.create_task(self._give(asked))
        self._commands.add(task)
        task.add_done_callback(self._commands.discard)

    async def _give(self, asked: Interaction) -> None:
        try:
            command: Command = asked.command(self._settings.most_prompt)
            await self._host.give(self._stream, command)
        except Arl2Error as error:
            if isinstance(error, NoRoomError) and error.told:
                return
            refused = Receipt(
                stream=self._stream, action=asked.action, key=asked.key, state="refused", error=str(error)
            )
            await self._socket.send_text(receipt_message(refused))


def _header(frame: EncodedFrame) -> bytes:
    return FRAME_HEADER.pack(frame.block, frame.frame, KEY if frame.key else 0, 0, frame.released)
