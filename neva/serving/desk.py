"""Between the event loop, which speaks with clients, and the thread that decodes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from neva.inference.continuation import Limits, Score
from neva.inference.load import Assistant
from neva.inference.sampling import Sampling
from neva.serving.logprobs import TokenNames
from neva.serving.options import ServeOptions
from neva.serving.problems import RequestProblem
from neva.serving.protocol import ChatRequest, FinishReason, Logprobs, Usage
from neva.serving.reading import Reader
from neva.serving.text import TextInPieces
from neva.serving.worker import AnswerJob, NewTokens, Worker


class AnswerPiece(NamedTuple):
    """A piece of an answer's text, and what is told of its tokens, where that is asked for."""

    text: str
    logprobs: Logprobs | None = None


class Desk:
    """Takes requests in, as many as may wait.

    Args:
        assistant: the model.
        options: the limits.
    """

    def __init__(self, assistant: Assistant, options: ServeOptions) -> None:
        self.assistant, self.options = assistant, options
        self.worker = Worker(assistant, options.max_num_seqs)
        self.reader = Reader(assistant, options)
        before = assistant.tokenizer.encode("a", add_special_tokens=False)
        self.names = TokenNames(self.decode, before)
        self.pool = ThreadPoolExecutor(
            2, "reading"
        )  # few: a large image takes much memory while it is decoded
        self.open = 0

    def receive(self) -> Ticket:
        """Returns the place of one more request; RequestProblem where none is free."""
        places = self.options.max_num_seqs + self.options.max_queue
        if self.open >= places:
            raise RequestProblem(429, f"{places} requests run or wait already; try again later", "queue_full")
        return Ticket(self)

    def close(self) -> None:
        """Ends the threads when the running answers are there."""
        self.worker.stop()
        self.pool.shutdown()

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids, special tokens included."""
        return str(self.assistant.tokenizer.decode(ids, skip_special_tokens=False))


class Ticket:
    """One request from its arrival on; `close` gives its place and its row free, whatever became of it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._progress: asyncio.Queue[NewTokens] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._job: AnswerJob | None = None
        self._is_closed = False
        self._prompt_tokens = self._new_tokens = 0
        self.finish_reason: FinishReason | None = None
        desk.open += 1

    async def ask(self, asked: ChatRequest) -> None:
        """Reads the request and hands it to the thread that decodes; UserError where it cannot be asked."""
        desk = self._desk
        _check_fields(asked)
        question = await self._loop.run_in_executor(desk.pool, desk.reader.read, asked.messages)
        encoder = desk.assistant.encoder
        stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        limits = _limits(asked, desk.options.max_tokens, encoder.end_ids)
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        ends = (*stop, *encoder.end_strings)
        self._prompt_tokens = len(question.ids)
        self._job = AnswerJob(question, limits, seed, ends, self._tell)
        self._text = TextInPieces(self._decode, ends)
        desk.worker.ask(self._job)

    async def pieces(self) -> AsyncIterator[AnswerPiece]:
        """Yields the answer's text as it grows; then `finish_reason` and `usage` hold."""
        scores: list[Score] = []
        while self.finish_reason is None:
            progress = await self._progress.get()
            if progress.end == "failed":
                raise RequestProblem(500, "decoding failed; the server's log says where")
            self._new_tokens += len(progress.ids)
            scores += progress.scores
            text = self._text.add(progress.ids)
            if progress.end is not None:
                text += self._text.rest()
                self.finish_reason = progress.end
            if text or (scores and progress.end is not None):  # the last tokens may have no text
                yield AnswerPiece(text, self._desk.names.told(scores) if scores else None)
                scores = []

    def usage(self) -> Usage:
        """Returns the tokens so far."""
        prompt, new = self._prompt_tokens, self._new_tokens
        return Usage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)

    def close(self) -> None:
        """Gives up what is not there yet; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._desk.open -= 1
            if self._job is not None:
                self._job.is_cancelled = True

    def _tell(self, progress: NewTokens) -> None:
        with suppress(RuntimeError):  # the loop has ended, so nobody waits
            self._loop.call_soon_threadsafe(self._progress.put_nowait, progress)

    def _decode(self, ids: list[int]) -> str:
        return str(self._desk.assistant.tokenizer.decode(ids, skip_special_tokens=True))


def _check_fields(asked: ChatRequest) -> None:
    """Raises RequestProblem for fields that do not go together."""
    if "" in (asked.stop or []) or asked.stop == "":
        raise RequestProblem(400, "stop: found an empty string, expected text in front of which to end")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestProblem(400, "top_logprobs: found without logprobs=true, expected both")


def _limits(asked: ChatRequest, longest: int, end_ids: tuple[int, ...]) -> Limits:
    """Returns a request's limits; what it leaves open is as OpenAI's documentation has it, temperature and top_p 1."""
    temperature = 1.0 if asked.temperature is None else asked.temperature
    sampling = Sampling(
        greedy=temperature == 0,
        temperature=temperature or 1.0,
        top_k=max(asked.top_k, 0),
        top_p=1.0 if asked.top_p is None else asked.top_p,
        repetition_penalty=asked.repetition_penalty,
    )
    wanted = asked.max_completion_tokens or asked.max_tokens or longest
    return Limits(
        sampling,
        min(wanted, longest),
        min(asked.min_tokens, wanted, longest),
        end_ids,
        scores="chosen" if asked.logprobs else "none",
        likeliest=asked.top_logprobs or 0,
    )
