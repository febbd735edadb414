"""The process that serves: a socket that is bound before anything is loaded, uvicorn, and how it ends.

The first Ctrl-C or SIGTERM lets every stream finish its block and be saved, then closes; a second one ends at once,
which costs nothing but time at the next start.
"""

import asyncio
import errno
import logging
import os
import socket
import sys
from asyncio import BaseTransport, TimerHandle
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from arl2.errors import ConfigError
from arl2.serving.web.settings import WebSettings

logger = logging.getLogger(__name__)

SILENT_SECONDS = 15.0  # until a connection has asked, from its beginning or its last answer on
MOST_CONNECTIONS = 16_384  # sockets too; more are closed at once
_MOST_FILES = 65_536
STALLED_SECONDS = 30.0  # that a reader may take nothing
_GRACE_SECONDS = 5  # for connections to end, once the streams are saved
_LEAVING_SECONDS, _LOOK_SECONDS = 2.0, 0.02  # for viewers to leave once they are told
INTERRUPTED = 130


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ConfigError: the port is in use or not allowed, or the address is none of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigError(f"Got --host '{host:.80}', which is no address; give 127.0.0.1, or 0.0.0.0.") from error
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
        found.set_inheritable(True)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            said = f"Port {port} of {host} is in use; stop the other program, or give another --port."
        elif error.errno in (errno.EACCES, errno.EPERM):
            said = f"This user may not open port {port}; give a --port from 1024 on."
        elif error.errno == errno.EADDRNOTAVAIL:
            said = f"'{host:.80}' is no address of this machine; give 127.0.0.1, or 0.0.0.0."
        else:
            said = f"Port {port} of {host} cannot be opened ({error.strerror}); give another --port."
        raise ConfigError(said) from error
    return found


def address_of(listening: socket.socket) -> str:
    """The URL at which a bound socket is reached from this machine."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows it: every viewer is one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(_MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server(uvicorn.Server):
    """uvicorn, drained before it ends.

    Args:
        app: from ``create_app``, or what stands in for it while the model is loaded.
        most_message: bytes of a socket's message.
        drain: saves everything, and ends the viewers.
        say: gets sentences for people.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        most_message: int = WebSettings.most_message,
        drain: Callable[[], Awaitable[None]],
        say: Callable[[str], None] = logger.info,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws=_Socket,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws_max_size=most_message,
            ws_per_message_deflate=False,  # video does not get smaller
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        super().__init__(config)
        self._drain, self._say = drain, say
        self._draining: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False

    async def _serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super()._serve(sockets)
        if self._draining is not None:
            await self._draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end at the second."""
        if self._asked or self._loop is None:
            # Threads that compute would be waited for; everything that matters is in the store.
            print("arl2 serve: ended at once", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)
        self._asked = True
        self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Drain, then end; on the server's event loop."""
        if self._draining is None:
            self._say("ending: streams finish their blocks and are saved; once more ends at once")
            self._draining = asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        try:
            await self._drain()
        finally:
            await self._viewers_leave()
            self.should_exit = True

    async def _viewers_leave(self) -> None:
        """Let sockets say why they end, for a moment: uvicorn then cuts those that are left."""
        for _ in range(round(_LEAVING_SECONDS / _LOOK_SECONDS)):
            if not any(isinstance(one, _Socket) for one in self.server_state.connections):
                return
            await asyncio.sleep(_LOOK_SECONDS)


class _Patience:
    """Cuts a connection whose reader has taken nothing for long; asyncio says when its buffer is full."""

    transport: Any
    loop: asyncio.AbstractEventLoop

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._stalled: TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]  # uvicorn's
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_SECONDS, self._cut)

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]  # uvicorn's
        self._resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._resumed()
        super().connection_lost(exc)  # type: ignore[misc]  # uvicorn's

    def _resumed(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _cut(self) -> None:
        self._stalled = None
        logger.info("a reader took nothing for %g seconds and is cut off", STALLED_SECONDS)
        self.transport.abort()


class _Socket(_Patience, WebSocketsSansIOProtocol):
    """A viewer's socket."""


class _Connection(_Patience, H11Protocol):
    """A connection; one that asks for nothing is closed, and so is one too many."""

    _silent: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > MOST_CONNECTIONS:
            transport.close()
        else:
            self._await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()  # uvicorn's own clock stops at the next request's first byte

    def connection_lost(self, exc: Exception | None) -> None:
        if self._silent is not None:
            self._silent.cancel()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self._silent is not None:
            self._silent.cancel()
        self._silent = self.loop.call_later(SILENT_SECONDS, self._tired)

    def _tired(self) -> None:
        self._silent = None
        asks = self.cycle is not None and not self.cycle.response_complete
        if not asks and self in self.connections:  # else it is answered, or is a viewer's socket
            self.transport.close()
