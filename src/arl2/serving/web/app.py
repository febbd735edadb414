"""The web application over any host of streams: one in this process, or a cluster."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

from arl2.serving.live.wire import StreamHost
from arl2.serving.web.errors import add_error_handlers
from arl2.serving.web.fragments import Shelf
from arl2.serving.web.guard import Guard
from arl2.serving.web.hls import hls_router
from arl2.serving.web.messages import plain
from arl2.serving.web.metrics import CONTENT_TYPE, Metrics
from arl2.serving.web.page_files import page_router
from arl2.serving.web.players import players_router
from arl2.serving.web.settings import WebSettings
from arl2.serving.web.socket import socket_router
from arl2.serving.web.streams import streams_router
from arl2.version import __version__

_ABOUT = """Live video streams of one model, and video jobs in OpenAI's format.

Watch a stream on its socket, `WS /v1/streams/{id}/live?after=BLOCK&format=h264|mp4`, or with a player at
`/v1/streams/{id}/live.mp4`. Errors are `{"error": {"message", "type", "code", "param"}}`.
"""


def create_app(
    host: StreamHost,
    settings: WebSettings,
    *,
    routers: tuple[APIRouter, ...] = (),
    jobs: Callable[[], dict[str, int]] | None = None,
) -> FastAPI:
    """The application, for uvicorn or Ray Serve.

    The host belongs to the caller, who drains and closes it.

    Args:
        host: has the streams.
        settings: who may come in, and facts of the model.
        routers: more of the API, such as video jobs.
        jobs: counts of video jobs by status, for ``/metrics``.
    """
    shelf, metrics = Shelf(), Metrics(settings.model)

    app = FastAPI(
        title="arl2",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # both load their scripts from other servers
        redoc_url=None,
        redirect_slashes=False,
    )
    add_error_handlers(app)
    app.include_router(page_router())
    app.include_router(_operations(host, settings, metrics, jobs))
    app.include_router(streams_router(host, settings))
    app.include_router(players_router(host, shelf, metrics))
    app.include_router(hls_router(host, settings.model.block_seconds, metrics))
    app.include_router(socket_router(host, settings, shelf, metrics))
    for router in routers:
        app.include_router(router)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allow_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type"],
            expose_headers=["Retry-After", "Content-Disposition"],
        )
    return app


def _operations(
    host: StreamHost, settings: WebSettings, metrics: Metrics, jobs: Callable[[], dict[str, int]] | None
) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok", "version": __version__}

    @router.get("/ready", responses={503: {"description": "Not yet, or not any more."}})
    async def ready() -> JSONResponse:
        """Whether streams can begin: a warm block was made, and the server is not about to end."""
        yes = await host.ready()
        return JSONResponse({"ready": yes}, 200 if yes else 503, None if yes else {"Retry-After": "2"})

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def figures() -> Response:
        """For Prometheus."""
        text = metrics.text(await host.streams(), ready=await host.ready(), jobs=jobs() if jobs else None)
        return Response(text, media_type=CONTENT_TYPE)

    @router.get("/v1/examples")
    async def examples() -> dict[str, Any]:
        """The model: its name, size and rate, what a new prompt may do, and prompts that it understands."""
        return plain(settings.model)

    return router
