"""``/v1/videos``: video jobs over HTTP in OpenAI's format, which its own client speaks."""

import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from arl2.errors import Arl2Error
from arl2.files.plain import parse_json
from arl2.serving.videos.order import FIELDS, FieldError, seconds_of
from arl2.serving.videos.service import VideoService
from arl2.serving.videos.shelf import Upload, VideoRecord
from arl2.serving.web.errors import error_response, status_of

logger = logging.getLogger(__name__)

_POLL_AFTER = "openai-poll-after-ms"  # what the client's own helper waits by
_POLL_MS = 500
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["prompt"],
                    "properties": {
                        **{name: {"type": "string"} for name in FIELDS},
                        "input_reference": {"type": "string", "format": "binary", "description": "First frame."},
                    },
                },
                "example": {"prompt": "a red circle moves right on navy", "seconds": "4", "seed": "7"},
            }
        },
    }
}
_EXTENSION_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["prompt", "video"],
                    "properties": {
                        **{name: {"type": "string"} for name in FIELDS},
                        "video": {"type": "string", "format": "binary", "description": "A file, or a video's id."},
                    },
                }
            }
        },
    }
}


class Video(BaseModel):
    """A video job."""

    id: str
    object: str = "video"
    created_at: int
    completed_at: int | None
    expires_at: int | None
    status: str = Field(description="queued, in_progress, completed or failed.")
    progress: int = Field(description="Percent.")
    model: str
    prompt: str
    seconds: str = Field(description="Of the whole video, as text.")
    size: str = Field(description="Width x height of the file.")
    remixed_from_video_id: str | None
    error: dict[str, str] | None
    num_frames: int
    fps: int
    seed: int


class Videos(BaseModel):
    """A page of a list."""

    object: str = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Remix(BaseModel):
    """The body of a remix."""

    model_config = {"extra": "forbid"}
    prompt: str = Field(description="What the video shows now.")


class _ErrorRoute(APIRoute):
    """Errors name their field, as OpenAI's do."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except FieldError as error:
                status = 404 if error.code == "model_not_found" else 400
                return error_response(status, str(error), code=error.code, param=error.param)
            except Arl2Error as error:
                status, code, headers = status_of(error)
                return error_response(400 if status == 422 else status, str(error), code=code, headers=headers)

        return handled


def videos_router(service: VideoService) -> APIRouter:
    """The routes of a service, for ``create_app(..., routers=(videos_router(service),), jobs=service.counts)``."""
    router = APIRouter(prefix="/v1/videos", tags=["videos"], route_class=_ErrorRoute)

    @router.post("", response_model=Video, openapi_extra=_FORM)
    async def create(request: Request) -> JSONResponse:
        """Take a job; a form, as OpenAI's client sends it, or a JSON object of the same fields."""
        async with _form(request, "input_reference") as (fields, files):
            return _video(await run_in_threadpool(service.create, fields, files.get("input_reference")))

    @router.post("/extensions", response_model=Video, openapi_extra=_EXTENSION_FORM)
    async def extend(request: Request) -> JSONResponse:
        """Continue a video, an upload or a finished job; ``seconds`` are those that are added."""
        async with _form(request, "video") as (fields, files):
            named = _named(fields)
            source: Upload | str | None = files.get("video") or named
            if source is None:
                raise FieldError("There is no video; send it as a file, or the id of a finished one.", "video")
            return _video(await run_in_threadpool(service.extend, fields, source))

    @router.get("", response_model=Videos)
    def list_videos(
        limit: int = Query(20, description="At most so many, 1 to 100."),
        after: str | None = Query(None, description="The last one of the page before."),
        order: str = Query("desc", description="asc, oldest first, or desc."),
    ) -> dict[str, Any]:
        """Jobs by the time when they were taken."""
        page = service.list(limit=limit, after=after, order=order)
        data = [_plain(record) for record in page.records]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": page.has_more}

    @router.get("/{video_id}", response_model=Video)
    def retrieve(video_id: str) -> JSONResponse:
        """A job as it is."""
        return _video(service.get(video_id))

    @router.get("/{video_id}/content", response_class=FileResponse)
    def content(
        video_id: str, variant: str = Query("video", description="video, thumbnail or spritesheet.")
    ) -> Response:
        """The finished video, or a picture of it; parts of it by the header Range."""
        path, kind = service.content(video_id, variant)
        return FileResponse(
            path, media_type=kind, filename=f"{video_id}{path.suffix}", content_disposition_type="inline"
        )

    @router.post("/{video_id}/remix", response_model=Video)
    def remix(video_id: str, body: Remix) -> JSONResponse:
        """Make another video with a new prompt, and noise and options of this one."""
        return _video(service.remix(video_id, body.prompt))

    @router.delete("/{video_id}")
    def delete(video_id: str) -> dict[str, Any]:
        """Remove a job and its files; one that is being made ends after its block."""
        service.delete(video_id)
        return {"id": video_id, "object": "video.deleted", "deleted": True}

    return router


@asynccontextmanager
async def _form(request: Request, upload: str) -> AsyncIterator[tuple[dict[str, str], dict[str, Any]]]:
    """Fields and files of a request, which are closed at the end; each once, and files only under ``upload``."""
    try:
        yield await _fields_and_files(request, upload)
    finally:
        await request.close()


async def _fields_and_files(request: Request, upload: str) -> tuple[dict[str, str], dict[str, Any]]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _json_fields(await request.body()), {}
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise HTTPException(415, f"The body is '{kind:.80}'; send multipart/form-data.")
    fields: dict[str, str] = {}
    files: dict[str, Any] = {}
    form = await request.form(max_files=1, max_fields=64)
    for name, value in form.multi_items():
        if name in fields or name in files:
            raise FieldError(f"Got {name:.80} twice; give it once.", name[:80])
        if not isinstance(value, UploadFile):
            fields[name] = value
        elif name == upload:
            files[name] = value.file
        else:
            raise FieldError(f"Got a file as {name:.80}; files are sent as {upload}.", name[:80])
    if upload == "input_reference" and any(name.partition("[")[0] == upload for name in fields):
        raise FieldError("Got input_reference as text; send the image as a file.", upload)
    return fields, files


def _json_fields(body: bytes) -> dict[str, str]:
    try:
        values = parse_json(body.decode())
    except ValueError:
        values = None
    if not isinstance(values, Mapping):
        raise FieldError("The body is no JSON object; send one, or multipart/form-data.", code="malformed_json")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise FieldError(f"Got {name:.80} of another kind; give text or a number.", name[:80])
    return {name: str(value) for name, value in values.items() if value is not None}


def _named(fields: dict[str, str]) -> str | None:
    """Take the name of a video out of an extension's fields: as text, as JSON, or as ``video[id]``."""
    given = fields.pop("video", None), fields.pop("video[id]", None)
    text = next((one for one in given if one), None)
    if text is not None and text.startswith("{"):
        return _json_fields(text.encode()).get("id")
    return text


def _video(record: VideoRecord) -> JSONResponse:
    return JSONResponse(_plain(record), headers=None if record.is_over else {_POLL_AFTER: str(_POLL_MS)})


def _plain(record: VideoRecord) -> dict[str, Any]:
    """As OpenAI's format has it, and three fields more."""
    error = None if record.error is None else {"code": record.error_code or "failed", "message": record.error}
    return {
        "id": record.id,
        "object": "video",
        "created_at": int(record.created),
        "completed_at": None if record.completed is None else int(record.completed),
        "expires_at": None if record.expires is None else int(record.expires),
        "status": record.status,
        "progress": record.progress,
        "model": record.model,
        "prompt": record.prompt,
        "seconds": seconds_of(record.frames, record.fps),
        "size": f"{record.width}x{record.height}",
        "remixed_from_video_id": record.remixed_from,
        "error": error,
        "num_frames": record.frames,
        "fps": record.fps,
        "seed": record.sampling["seed"],
    }
