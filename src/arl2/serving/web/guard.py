"""Who may come in, and with how much: host names, origins, the key, sizes and pauses of bodies, headers of answers."""

import asyncio
import contextlib
import hmac
import json
import logging
import socket
import time
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arl2.serving.web.errors import error_response
from arl2.serving.web.metrics import Metrics
from arl2.serving.web.settings import WebSettings

logger = logging.getLogger(__name__)

_OPEN = ("/", "/health", "/ready", "/favicon.ico")  # without a key, and the page's files
_PAGE_FILES = "/page/"
_READING = ("GET", "HEAD", "OPTIONS")
_METHODS = (*_READING, "POST", "PUT", "PATCH", "DELETE")
_SNAPSHOTS, _FORMS = "/v1/streams/snapshot", ("/v1/videos", "/v1/videos/extensions")  # take large bodies
_DISCARDED_BYTES, _DISCARDING_SECONDS = 16 << 20, 2.0  # of a body that is refused
_TOO_MANY = "Other uploads are under way, and this server takes no more at once; send it again in a moment."
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class _Refusal:
    """Why somebody may not come in."""

    status: int
    code: str
    message: str


class Guard:
    """Stands before the app.

    A key protects everything but the page, ``/health`` and ``/ready``: the header ``Authorization: Bearer KEY`` or
    ``X-API-Key``, and where a browser or a player can set none, ``?key=``. A browser on a page of another server
    (Origin) may neither change anything nor open a socket. Without a key, names by which somebody else's page could
    reach this machine (DNS rebinding) are refused.

    Args:
        app: what is behind.
        settings: says who may come in.
        metrics: counts.
    """

    def __init__(self, app: ASGIApp, *, settings: WebSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._uploads = 0  # large bodies under way
        here = socket.gethostname().lower()
        self._names = {"localhost", here, f"{here}.local", *(one.lower() for one in settings.allow_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, status, uploads = time.monotonic(), 0, False

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            refusal = self._refusal(scope) or self._too_large(scope)
            if refusal is None and self._is_large(scope):
                uploads = self._uploads < self._settings.most_uploads
                self._uploads += uploads
                refusal = None if uploads else _Refusal(429, "too_many_uploads", _TOO_MANY)
            if refusal is not None:
                self._metrics.refused.labels(refusal.code).inc()
                headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
                if refusal.status == 429:
                    headers["Retry-After"] = "5"
                headers["Connection"] = "close"
                await _discard(receive)
                refused = error_response(refusal.status, refusal.message, code=refusal.code, headers=headers)
                await refused(scope, receive, answer)
            else:
                await self._app(scope, self._limited(scope, receive), answer)
        finally:
            self._uploads -= uploads
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"  # a client may name any
            self._metrics.requests.labels(method, route, str(status or "none")).inc()
            took = round(1000 * (time.monotonic() - begun), 1)
            fields = {"method": scope["method"], "path": scope["path"], "status": status, "milliseconds": took}
            fields["client"] = (scope.get("client") or ("",))[0]
            logger.info("%s %s %s", scope["method"], scope["path"], status, extra={"fields": fields})

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope)
        if refusal is not None:
            self._metrics.refused.labels(refusal.code).inc()
            # A browser is told why only on a socket that was opened.
            await receive()
            await send({"type": "websocket.accept"})
            said = json.dumps({"type": "error", "code": refusal.code, "message": refusal.message})
            await send({"type": "websocket.send", "text": said})
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})
            return
        await self._app(scope, receive, send)

    # -- who -----------------------------------------------------------------------------------------------------

    def _refusal(self, scope: Scope) -> _Refusal | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._settings.api_key is None and not self._is_ours(host):
            named = _name_of(host)
            return _Refusal(
                421,
                "unknown_host",
                f"This server does not answer to the name '{named:.80}'. Start it with --allow-host {named:.80}, or "
                "with an API key.",
            )
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in _READING
        if changes and origin is not None and not self._may_ask(origin, host):
            return _Refusal(
                403,
                "unknown_origin",
                f"A page of {origin:.120} may not use this server. Start it with --allow-origin {origin:.120}.",
            )
        if self._settings.api_key is not None and not _is_open(scope) and not self._has_key(scope, headers):
            return _Refusal(
                401,
                "wrong_key",
                "This server needs its API key: the header 'Authorization: Bearer KEY', or '?key=KEY' for players and "
                "sockets of browsers.",
            )
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        if name in self._names:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True  # an address cannot be rebound

    def _may_ask(self, origin: str, host: str) -> bool:
        if origin in self._settings.allow_origins:
            return True
        parts = urlsplit(origin)
        usual = {"http": 80, "https": 443}.get(parts.scheme)
        if usual is None:
            return False
        try:
            there = parts.hostname, parts.port or usual
            here = urlsplit(f"{parts.scheme}://{host}")
            return there == (here.hostname, here.port or usual)
        except ValueError:
            return False

    def _has_key(self, scope: Scope, headers: Headers) -> bool:
        kind, _, word = headers.get("authorization", "").partition(" ")
        given = word.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not given and (scope["type"] == "websocket" or scope["method"] in _READING):
            query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
            given = (query.get("key") or [""])[0]
        return hmac.compare_digest(given.encode(), (self._settings.api_key or "").encode())

    # -- how much ------------------------------------------------------------------------------------------------

    def _most(self, scope: Scope) -> int:
        """Bytes of a body: what is parsed at once is small, what is read piece by piece may be large."""
        path, kind = scope["path"], Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        large = path == _SNAPSHOTS or (path in _FORMS and kind == "multipart/form-data")
        return self._settings.most_upload if large and scope["method"] == "POST" else self._settings.most_body

    def _is_large(self, scope: Scope) -> bool:
        """Whether a body is, or may become, larger than those of other requests."""
        headers = Headers(scope=scope)
        may_be = self._most(scope) > self._settings.most_body
        return may_be and ("content-length" not in headers or int(headers["content-length"]) > self._settings.most_body)

    def _too_large(self, scope: Scope) -> _Refusal | None:
        length = Headers(scope=scope).get("content-length", "0")
        most = self._most(scope)
        if length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= most:
            return None
        return _Refusal(413, "too_large", _too_large(most))

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """``receive``, but a body that is too long, or does not come, ends with an error."""
        left, reading, most = self._most(scope), True, self._most(scope)

        async def limited() -> Message:
            nonlocal left, reading
            if not reading:  # what comes now is only that the client goes away
                return await receive()
            try:
                async with asyncio.timeout(self._settings.body_seconds):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The body did not come in time; send it again.") from None
            left -= len(message.get("body", b""))
            if left < 0:
                if message.get("more_body", False):
                    await _discard(receive)
                raise HTTPException(413, _too_large(most))
            reading = message.get("more_body", False)
            return message

        return limited


async def _discard(receive: Receive) -> None:
    """Take what a client sends on, within reason: who is cut off while it sends does not read the answer."""
    left = _DISCARDED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARDING_SECONDS):
            while left > 0:
                message = await receive()
                if not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


def _is_open(scope: Scope) -> bool:
    if scope["type"] == "websocket":
        return False
    path = scope["path"]
    return scope["method"] == "OPTIONS" or path in _OPEN or path.startswith(_PAGE_FILES)


def _name_of(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return host.lower()


def _too_large(most: int) -> str:
    return f"The body is too large; give at most {most:,} bytes."
