"""The page: its files as they lie in the package, with headers that let a browser run nothing else.

The page is plain modules without a build, and asks only the server that it came from.
"""

import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked again each time, and sent again only where it is another: a new server shows its own page.
    "Cache-Control": "no-cache",
}
_PAGE = "page.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_router() -> APIRouter:
    """``/`` gives the page, ``/page/NAME`` the files that it needs; nothing here wants a key."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return _answer(request, _PAGE)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def page_file(request: Request, name: str) -> Response:
        return _answer(request, name)

    return router


def _answer(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        return Response("There is no such file of the page.", 404, HEADERS, "text/plain; charset=utf-8")
    content, kind, tag = found
    headers = HEADERS | {"ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


@cache
def page_files() -> dict[str, tuple[bytes, str, str]]:
    """By name: content, media type and entity tag. A name that is asked for never becomes a path."""
    found = {}
    for entry in files("arl2.serving.web").joinpath("page").iterdir():
        kind = _TYPES.get("." + entry.name.rpartition(".")[2])
        if kind is not None:
            content = entry.read_bytes()
            found[entry.name] = content, kind, f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    return found
