"""Every error as one JSON object with a sentence, as in OpenAI's API: {"error": {message, type, code, param}}."""

import http
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from arl2.errors import Arl2Error, SnapshotError, StreamError, is_out_of_memory
from arl2.serving.live.wire import DrainingError, NoRoomError, Receipt, UnknownStreamError
from arl2.serving.web.messages import plain, sentence_of

logger = logging.getLogger(__name__)

_SENTENCES = {
    404: "There is no such address here; GET /openapi.json lists all.",
    405: "This address takes other methods; the header Allow lists them.",
}


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """An error with its sentence."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    name = code or http.HTTPStatus(status).phrase.lower().replace(" ", "_")
    error = {"message": message, "type": kind, "code": name, "param": param}
    return JSONResponse({"error": error, **more}, status, headers)


def refused_response(receipt: Receipt) -> JSONResponse:
    """A command that was refused: 409, with the receipt beside the error."""
    return error_response(409, receipt.error or "Refused.", code="refused", receipt=plain(receipt))


def status_of(error: Arl2Error) -> tuple[int, str, dict[str, str]]:
    """Status, code and headers that say what kind of error this is."""
    if isinstance(error, UnknownStreamError):
        return 404, "not_found", {}
    if isinstance(error, NoRoomError):
        return 429, "no_room", {"Retry-After": str(max(1, round(error.retry_after)))}
    if isinstance(error, DrainingError):
        return 503, "draining", {"Retry-After": "5"}
    if isinstance(error, SnapshotError):
        return 422, "snapshot", {}
    if isinstance(error, StreamError):
        return 409, "stream", {}
    if type(error).__name__ == "StoreError":
        return 507, "store", {}
    return 422, "invalid_value", {}


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of the app be an object with a sentence."""

    @app.exception_handler(Arl2Error)
    async def ours(_: Request, error: Arl2Error) -> JSONResponse:
        status, code, headers = status_of(error)
        return error_response(status, str(error), code=code, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            said = first.get("ctx", {}).get("error", "")
            return error_response(400, f"The body is no JSON ({said}); send an object.", code="malformed_json")
        place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        return error_response(422, sentence_of(error.errors()), code="invalid_value", param=".".join(place) or None)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        plain_words = error.detail == http.HTTPStatus(error.status_code).phrase
        said = _SENTENCES.get(error.status_code, error.detail) if plain_words else error.detail
        return error_response(error.status_code, said, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        if is_out_of_memory(error):
            said = "The machine has too little memory for this now; end a stream, or ask again later."
            return error_response(503, said, code="out_of_memory", headers={"Retry-After": "30"})
        return error_response(500, "A fault of the server, which its log describes.", code="fault")
