"""Between the event loop, which speaks with clients, and the thread that decodes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from neva.inference.continuation import Limits
from neva.inference.load import Assistant
from neva.inference.sampling import Sampling
from neva.serving.growing import AnswerPiece, GrowingAnswer
from neva.serving.logprobs import TokenNames
from neva.serving.options import ServeOptions
from neva.serving.problems import RequestProblem
from neva.serving.protocol import ChatRequest, Usage
from neva.serving.reading import Reader
from neva.serving.text import TextInPieces
from neva.serving.worker import AnswerJob, NewTokens, Worker


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
        self.names = TokenNames(assistant.whole_text, before)
        # few: a large image takes much memory while it is decoded
        self.pool = ThreadPoolExecutor(2, "reading")
        self.open = 0

    def receive(self, count: int) -> Ticket:
        """Returns the places of so many more answers to one question; RequestProblem where they are not free."""
        places = self.options.max_num_seqs + self.options.max_queue
        if count > places:
            raise RequestProblem(
                400, f"n: found {count}, expected at most {places}, which may run or wait here"
            )
        if self.open + count > places:
            free = places - self.open
            raise RequestProblem(
                429, f"{free} of {places} answers may still be asked for; try again later", "queue_full"
            )
        return Ticket(self, count)

    def close(self) -> None:
        """Ends the threads when the running answers are there."""
        self.worker.stop()
        self.pool.shutdown()


class Ticket:
    """One request from its arrival on; `close` gives its places and rows free, whatever became of it."""

    def __init__(self, desk: Desk, count: int) -> None:
        self._desk, self.count = desk, count
        self._progress: asyncio.Queue[tuple[int, NewTokens]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._answers: list[GrowingAnswer] = []
        self._is_closed = False
        self._prompt_tokens = 0
        desk.open += count

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
        for index in range(self.count):
            job = AnswerJob(question, limits, seed + index, ends, partial(self._tell, index))
            self._answers.append(
                GrowingAnswer(index, job, TextInPieces(desk.assistant.text, ends), desk.names)
            )
            desk.worker.ask(job)

    async def pieces(self) -> AsyncIterator[AnswerPiece]:
        """Yields the answers' texts as they grow; then `usage` holds."""
        while any(answer.finish_reason is None for answer in self._answers):
            index, progress = await self._progress.get()
            if (piece := self._answers[index].piece(progress)) is not None:
                yield piece

    def usage(self) -> Usage:
        """Returns the tokens so far."""
        prompt, new = self._prompt_tokens, sum(answer.tokens for answer in self._answers)
        return Usage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)

    def close(self) -> None:
        """Gives up what is not there yet; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._desk.open -= self.count
            for answer in self._answers:
                answer.job.is_cancelled = True

    def _tell(self, index: int, progress: NewTokens) -> None:
        with suppress(RuntimeError):  # the loop has ended, so nobody waits
            self._loop.call_soon_threadsafe(self._progress.put_nowait, (index, progress))


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
