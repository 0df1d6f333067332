"""What stands in front of every route: the key, and the size of a body, whose pieces must come."""

from __future__ import annotations

import asyncio
import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neva.serving.options import ServeOptions
from neva.serving.problems import RequestProblem, error_body

_GUARDED = "/v1"
_PATIENCE_S = 15.0
"""Until the next piece of a body is here: one that never comes would keep a server from ending that is told to."""


class Guard:
    """An ASGI application around another.

    Args:
        app: the other.
        options: the key, which requests below /v1 bring as `Authorization: Bearer KEY`, and the size.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app, self._options = app, options
        self._expected = None if not options.api_key else f"Bearer {options.api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._expected is not None and scope["path"].startswith(_GUARDED) and not self._has_key(scope):
            body = error_body(401, "no or another API key; send the header Authorization: Bearer KEY")
            await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        else:
            await self._app(scope, self._counted(scope, receive), send)

    def _has_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected or b"")

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """Returns `receive`, raising RequestProblem where a body is or is said to be too large, or does not come."""
        limit = self._options.max_body_mib * 2**20
        length = dict(scope["headers"]).get(b"content-length", b"0")
        total = int(length) if length.isdigit() else 0
        is_said_too_large, total, is_whole = total > limit, 0, False

        async def counted() -> Message:
            nonlocal total, is_whole
            try:
                message = await asyncio.wait_for(receive(), None if is_whole else _PATIENCE_S)
            except asyncio.TimeoutError as error:
                raise RequestProblem(408, f"the body did not go on for {_PATIENCE_S:.0f} seconds") from error
            total += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if is_said_too_large or total > limit:
                raise RequestProblem(413, f"the body is larger than {self._options.max_body_mib} MiB")
            return message

        return counted
