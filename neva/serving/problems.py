"""Errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from neva.errors import UserError
from neva.serving.protocol import ErrorBody, ErrorDetail

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""By status; others are the server's own failure."""
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status, for a log: nobody reads the answer."""


class RequestProblem(HTTPException):
    """A request that is not answered.

    Args:
        status_code: of HTTP.
        message: found, expected, remedy.
        code: a word for programs, where there is one.
    """

    def __init__(self, status_code: int, message: str, code: str | None = None) -> None:
        headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status_code)
        super().__init__(status_code, message, headers)
        self.code = code


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Returns the JSON of an error; half characters of what was sent are replaced."""
    text = message.encode("utf-8", "replace").decode()
    detail = ErrorDetail(message=text, type=_TYPES.get(status, "server_error"), param=param, code=code)
    return ErrorBody(error=detail).model_dump()


def add_handlers(app: FastAPI) -> None:
    """Gives every error of an application OpenAI's form."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(UserError, _unusable)
    app.add_exception_handler(ClientDisconnect, _gone_away)
    app.add_exception_handler(Exception, _failed)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = error_body(error.status_code, str(error.detail), code=getattr(error, "code", None))
    return JSONResponse(body, error.status_code, error.headers)


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # of the alternatives of a type the one that was meant is read furthest
    found = max(error.errors(), key=lambda each: len(each["loc"]))
    place, message = _place(found["loc"]), found["msg"]
    if found["type"] == "extra_forbidden":
        message = "this server has no such field"
    elif found["type"] == "json_invalid":
        place, message = "", f"found no JSON ({found['ctx']['error']} at character {found['loc'][-1]})"
    elif not place and "json" not in (kind := request.headers.get("content-type", "")):
        message = f"found the header Content-Type: {kind:.80}, expected application/json"
    param = place.encode("utf-8", "replace").decode() or None
    return JSONResponse(error_body(400, f"{place or 'the body'}: {message}", param), 400)


async def _unusable(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(400, str(error)), 400)


async def _gone_away(_: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(
        error_body(500, f"the server failed ({type(error).__name__}); its log says where"), 500
    )


def _place(location: Sequence[str | int]) -> str:
    """Returns where in the body, such as `messages.0.content`; the words for alternatives of a type are left out."""
    words = [
        word for word in location[1:] if isinstance(word, int) or (word.isidentifier() and word != "str")
    ]
    return ".".join(map(str, words))
