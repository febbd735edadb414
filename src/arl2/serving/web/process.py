"""A server from its port to its end: it answers while the model is loaded, and is ready once a block was made."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from arl2.serving.web.errors import error_response
from arl2.serving.web.server import INTERRUPTED, Server, raise_file_limit
from arl2.serving.web.settings import WebSettings
from arl2.version import __version__

_AGAIN_LATER = 1013


@dataclass(frozen=True)
class Opened:
    """What a server serves, once it is loaded.

    Attributes:
        app: from ``create_app``.
        warm: makes a block that nobody sees; afterwards the server is ready.
        drain: saves everything, and ends the viewers.
        close: lets go of everything.
    """

    app: ASGIApp
    warm: Callable[[], Awaitable[None]]
    drain: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]


def run_server(
    listening: socket.socket,
    load: Callable[[], Awaitable[Opened]],
    *,
    say: Callable[[str], None],
    url: str,
    most_message: int = WebSettings.most_message,
) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code.

    Args:
        listening: from ``bind``.
        load: loads the model, in a thread of its own.
        say: gets sentences for people.
        url: where the server is reached, for those.
        most_message: bytes of a viewer's message.
    """
    raise_file_limit()
    return asyncio.run(_serve(listening, load, say, url, most_message))


async def _serve(
    listening: socket.socket, load: Callable[[], Awaitable[Opened]], say: Callable[[str], None], url: str, most: int
) -> int:
    door = _Door()
    opened: Opened | None = None

    async def drain() -> None:
        if opened is None:
            say("interrupted while the model was loaded")
            os._exit(INTERRUPTED)  # the thread that loads cannot be stopped, and nothing is to be saved
        await opened.drain()

    server = Server(door, most_message=most, drain=drain, say=say)
    serving = asyncio.create_task(server.serve([listening]))
    try:
        opened = await load()
        door.app = opened.app
        warming = asyncio.ensure_future(opened.warm())
        await asyncio.wait({serving, warming}, return_when=asyncio.FIRST_COMPLETED)
        if warming.done():
            warming.result()
            say(f"ready: {url}")
        await serving
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        if opened is not None:
            await opened.close()
    return 0


class _Door:
    """Answers that the model is not loaded yet, until there is an app."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _AGAIN_LATER})
        elif scope["path"] == "/health":
            await JSONResponse({"status": "ok", "version": __version__})(scope, receive, send)
        else:
            said = "The model is being loaded; ask again in a moment."
            await error_response(503, said, code="loading", headers={"Retry-After": "2"})(scope, receive, send)
