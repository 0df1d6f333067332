"""The routes: chat completions as OpenAI has them, the model's name, and how the server is."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from neva import __version__
from neva.serving.desk import Desk, Ticket
from neva.serving.growing import AnswerPiece
from neva.serving.guard import Guard
from neva.serving.page_routes import add_page
from neva.serving.problems import RequestProblem, add_handlers, error_body
from neva.serving.protocol import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    ErrorBody,
    Health,
    Logprobs,
    ModelCard,
    ModelList,
    Said,
    Usage,
)

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "the request is not answered; message says why"},
    "5XX": {"model": ErrorBody, "description": "the server failed"},
}
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""A proxy in between passes each piece on at once."""
_T = TypeVar("_T")


def build_app(desk: Desk, name: str) -> FastAPI:
    """Returns the application that answers with the desk's model, called `name`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        desk.worker.start()
        yield
        desk.close()

    app = FastAPI(title="neva", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    add_handlers(app)
    app.add_middleware(Guard, options=desk.options)
    card = ModelCard(id=name, created=int(time.time()))
    _add_facts(app, desk, card)
    _add_chat(app, desk, card)
    if desk.options.page:
        add_page(app, name, desk.options)
    return app


def _add_facts(app: FastAPI, desk: Desk, card: ModelCard) -> None:
    """Adds the routes that only tell."""

    @app.get("/health", responses={503: {"model": Health, "description": "decoding fails"}})
    async def health(response: Response) -> Health:
        """How the server is."""
        is_well = desk.worker.is_alive() and not desk.worker.is_failing
        response.status_code = 200 if is_well else 503
        return Health(
            status="ok" if is_well else "failing", requests=desk.open, max_tokens=desk.options.max_tokens
        )

    @app.get("/v1/models", responses=_ERRORS)
    async def models() -> ModelList:
        """The models that answer: one."""
        return ModelList(data=[card])

    @app.get("/v1/models/{model:path}", responses=_ERRORS)  # names of the hub have a slash
    async def model(model: str) -> ModelCard:
        """One model."""
        _check_name(model, card)
        return card


def _add_chat(app: FastAPI, desk: Desk, card: ModelCard) -> None:
    """Adds the route that answers."""
    content: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={
            200: {"content": content, "description": "an answer, or its pieces as they come"},
            **_ERRORS,
        },
    )
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answers the last message of a conversation."""
        if asked.model is not None:
            _check_name(asked.model, card)
        ticket = desk.receive(asked.n or 1)
        try:
            await ticket.ask(asked)
        except BaseException:
            ticket.close()
            raise
        head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": card.id,
        }
        if asked.stream:
            has_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
            return _Stream(ticket, _events(ticket, head, has_usage))
        try:
            pieces = await _unless_gone(request, _all(ticket))
        finally:
            ticket.close()
        choices = [
            _choice(index, [piece for piece in pieces if piece.index == index])
            for index in range(ticket.count)
        ]
        completion = ChatCompletion(**head, choices=choices, usage=ticket.usage())
        return JSONResponse(completion.model_dump(exclude_none=True))


class _Stream(StreamingResponse):
    """The pieces of an answer; its place is free when the client has them, or has gone away."""

    def __init__(self, ticket: Ticket, events: AsyncIterator[str]) -> None:
        super().__init__(events, headers=_STREAM_HEADERS, media_type="text/event-stream")
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.close()


async def _events(ticket: Ticket, head: dict[str, Any], has_usage: bool) -> AsyncIterator[str]:
    """Yields server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

    def event(choices: list[ChunkChoice], usage: Usage | None = None) -> str:
        return (
            f"data: {ChatChunk(**head, choices=choices, usage=usage).model_dump_json(exclude_none=True)}\n\n"
        )

    for index in range(ticket.count):
        yield event([ChunkChoice(index=index, delta=Said(role="assistant", content=""))])
    try:
        async for piece in ticket.pieces():
            if piece.text or piece.logprobs:
                said = Said(content=piece.text)
                yield event([ChunkChoice(index=piece.index, delta=said, logprobs=piece.logprobs)])
            if piece.finish_reason is not None:
                end = ChunkChoice(index=piece.index, delta=Said(), finish_reason=piece.finish_reason)
                yield event([end])
    except RequestProblem as problem:
        yield f"data: {json.dumps(error_body(problem.status_code, str(problem.detail)))}\n\n"
    else:
        if has_usage:
            yield event([], ticket.usage())
    yield "data: [DONE]\n\n"


async def _all(ticket: Ticket) -> list[AnswerPiece]:
    return [piece async for piece in ticket.pieces()]


def _choice(index: int, pieces: Sequence[AnswerPiece]) -> Choice:
    """Returns an answer of all its pieces."""
    said = Said(role="assistant", content="".join(piece.text for piece in pieces))
    told = [piece.logprobs.content for piece in pieces if piece.logprobs]
    logprobs = Logprobs(content=[*chain(*told)]) if told else None
    finish_reason = pieces[-1].finish_reason
    assert finish_reason is not None
    return Choice(index=index, message=said, logprobs=logprobs, finish_reason=finish_reason)


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, _T]) -> _T:
    """Returns an answer; ClientDisconnect when the client goes away before it is there."""
    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_gone(request))
    await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not answering.done():
        answering.cancel()
        raise ClientDisconnect
    return answering.result()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_name(name: str, card: ModelCard) -> None:
    if name != card.id:
        raise RequestProblem(404, f"no model {name!r:.80} here; there is {card.id!r}", "model_not_found")
