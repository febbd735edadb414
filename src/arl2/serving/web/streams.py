"""``/v1/streams``: begin, list, read and end streams, give them commands, and take their snapshots in and out."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response

from arl2.errors import ConfigError
from arl2.serving.live.wire import Action, Command, Receipt, StreamHost, StreamInfo
from arl2.serving.web.errors import refused_response
from arl2.serving.web.messages import Fork, NewPrompt, NewStream, Plain, Rewind, checked_prompt, plain
from arl2.serving.web.settings import WebSettings
from arl2.streams.state import SnapshotKind

_BYTES = "application/octet-stream"
Name = Annotated[str, Path(description="A stream's id.", examples=["k3v9x2"])]
_ERROR: dict[str, Any] = {
    "content": {
        "application/json": {
            "example": {
                "error": {
                    "message": "There is no stream 'k3v9x2'.",
                    "type": "invalid_request_error",
                    "code": "not_found",
                    "param": None,
                }
            }
        }
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"description": "There is no such stream.", **_ERROR},
    422: {"description": "A value that cannot be; the message says which, and what is accepted.", **_ERROR},
}
_NO_ROOM: dict[int | str, dict[str, Any]] = {
    429: {"description": "No memory for it now; Retry-After says when to ask again.", **_ERROR},
    503: {"description": "The server is about to end.", **_ERROR},
}
_REFUSED: dict[int | str, dict[str, Any]] = {
    409: {"description": "Refused; the body has the error and the receipt.", **_ERROR}
}
_RAW: dict[str, Any] = {
    "requestBody": {"required": True, "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}
}


def streams_router(host: StreamHost, settings: WebSettings) -> APIRouter:
    """The routes; answers are the records of ``arl2.serving.live.wire`` as JSON."""
    router = APIRouter(prefix="/v1/streams", tags=["streams"], responses=ERRORS)

    @router.post("", status_code=201, responses=_NO_ROOM)
    async def create(body: NewStream) -> StreamInfo:
        """Begin a stream. Watch it on its socket, or with ``live.mp4``."""
        return await host.create(body.request(settings.most_prompt))

    @router.get("")
    async def listed() -> dict[str, Any]:
        """All streams, those asleep too, oldest first."""
        return {"object": "list", "data": [plain(one) for one in await host.streams()]}

    @router.post("/snapshot", status_code=201, responses=_NO_ROOM, openapi_extra=_RAW)
    async def upload(
        request: Request,
        prompt: Annotated[str | None, Query(description="Another prompt than the snapshot's.")] = None,
        name: Annotated[str, Query(max_length=200, description="Your own text, for lists.")] = "",
    ) -> StreamInfo:
        """Begin a stream from a snapshot: the bytes are the body."""
        if prompt is not None:
            checked_prompt(prompt, settings.most_prompt)
        data = await request.body()
        if not data:
            raise ConfigError("The body is empty; send the bytes of a snapshot (.arl2).")
        return await host.resume(data, prompt=prompt, name=name)

    @router.get("/{stream}")
    async def read(stream: Name) -> StreamInfo:
        """One stream, as it is; does not wake it."""
        return await host.info(stream)

    @router.delete("/{stream}")
    async def delete(stream: Name) -> dict[str, Any]:
        """End a stream, and remove what is kept of it."""
        await host.delete(stream)
        return {"id": stream, "object": "stream.deleted", "deleted": True}

    @router.get("/{stream}/snapshot", response_class=Response, responses={200: {"content": {_BYTES: {}}}})
    async def snapshot(
        stream: Name,
        kind: Annotated[
            SnapshotKind, Query(description="exact continues with the same bits; light is small.")
        ] = "exact",
        block: Annotated[int | None, Query(ge=0, description="A kept point; now if it is left out.")] = None,
    ) -> Response:
        """A stream as a file, which ``arl2 stream --resume`` and ``POST /v1/streams/snapshot`` take."""
        data = await host.snapshot(stream, kind, block)
        suffix = "" if block is None else f"-{block}"
        headers = {"Content-Disposition": f'attachment; filename="{stream}{suffix}.arl2"'}
        return Response(data, media_type=_BYTES, headers=headers)

    _add_commands(router, host, settings)
    return router


def _add_commands(router: APIRouter, host: StreamHost, settings: WebSettings) -> None:
    """Every command answers with its last receipt: ``applied`` with the block, or 409."""
    longest = settings.most_prompt

    async def give(stream: str, command: Command) -> Any:
        receipt = await host.give(stream, command)
        return refused_response(receipt) if receipt.state == "refused" else receipt

    how: dict[str, Any] = {"response_model": Receipt, "responses": _REFUSED}

    @router.post("/{stream}/prompt", **how)
    async def prompt(stream: Name, body: NewPrompt) -> Any:
        """Another prompt; the receipt says from which block on."""
        return await give(stream, body.command("prompt", longest))

    @router.post("/{stream}/rewind", **how)
    async def rewind(stream: Name, body: Rewind) -> Any:
        """Back to a kept point; the video goes on from there after a cut."""
        return await give(stream, body.command("rewind", longest))

    @router.post("/{stream}/fork", **{**how, "responses": _REFUSED | _NO_ROOM})
    async def fork(stream: Name, body: Annotated[Fork | None, Body()] = None) -> Any:
        """A second stream that continues from here; the receipt has its name."""
        return await give(stream, (body or Fork()).command("fork", longest))

    async def held(stream: str, action: Action, body: Plain | None) -> Any:
        return await give(stream, (body or Plain()).command(action, longest))

    @router.post("/{stream}/pause", **how)
    async def pause(stream: Name, body: Annotated[Plain | None, Body()] = None) -> Any:
        """Show nothing more until it is played; nothing is made meanwhile."""
        return await held(stream, "pause", body)

    @router.post("/{stream}/play", **how)
    async def play(stream: Name, body: Annotated[Plain | None, Body()] = None) -> Any:
        """The end of a pause."""
        return await held(stream, "play", body)
