"""The thread that decodes: it takes what is asked into a continuous batch and tells each token as it comes."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from neva.data.collate import feature_order, picture_shapes
from neva.inference.continuation import Continuation, Limits, Score
from neva.inference.generate import ContinuousBatch, encode
from neva.inference.load import Assistant
from neva.inference.stopping import EndStrings
from neva.serving.reading import Picture, Question

logger = logging.getLogger(__name__)

_KEPT = 16
"""Images whose features wait for the next turn of their conversation."""


@dataclass(frozen=True)
class NewTokens:
    """New tokens of an answer, with their scores where asked for; with the last ones, why it ends."""

    ids: list[int]
    end: Literal["stop", "length", "failed"] | None = None
    scores: Sequence[Score] = ()


@dataclass
class AnswerJob:
    """What is asked.

    Args:
        question: what is continued.
        limits: how tokens are chosen, and how many.
        seed: of the draws.
        ends: strings that end the answer.
        tell: called by the thread that decodes, with every progress.
        is_cancelled: nobody waits any more; who asked sets it.
    """

    question: Question
    limits: Limits
    seed: int
    ends: Sequence[str]
    tell: Callable[[NewTokens], None]
    is_cancelled: bool = False
    told: int = field(default=0, init=False)


class Worker(threading.Thread):
    """Decodes until it is stopped; a request joins at the next step.

    Args:
        assistant: the model, which nothing else uses meanwhile.
        rows: answers that grow together.
    """

    def __init__(self, assistant: Assistant, rows: int) -> None:
        super().__init__(name="decoding", daemon=True)
        self._assistant, self._rows = assistant, rows
        self._arriving: queue.SimpleQueue[AnswerJob | None] = queue.SimpleQueue()
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self._numbers = itertools.count()
        self._is_stopping = False
        self.is_failing = False
        """Whether the last step failed."""
        self._reset()

    def ask(self, job: AnswerJob) -> None:
        """Hands a job over."""
        self._arriving.put(job)

    def stop(self) -> None:
        """Ends the thread when the answers that run are there."""
        self._arriving.put(None)
        self.join()

    def run(self) -> None:
        """Decodes."""
        while self._batch.running or not self._is_stopping:
            try:
                self._step()
                self.is_failing = False
            except Exception:
                # Whatever it was (memory, a kernel), those who wait are told; the next request may fare better.
                logger.exception("decoding failed; %s answers are given up", len(self._jobs))
                self.is_failing = True
                for job in self._jobs.values():
                    job.tell(NewTokens([], "failed"))
                self._reset()

    def _reset(self) -> None:
        self._batch = ContinuousBatch(self._assistant.decoder, self._rows)
        self._jobs: dict[int, AnswerJob] = {}

    def _step(self) -> None:
        for continuation in self._batch.running:
            job = self._jobs.get(continuation.number)
            if job is not None and job.is_cancelled:
                continuation.has_ended = True
                del self._jobs[continuation.number]
        self._batch.step(self._arrivals())
        for continuation in self._batch.running:
            if continuation.number in self._jobs:
                self._tell(continuation)

    def _tell(self, continuation: Continuation) -> None:
        job = self._jobs[continuation.number]
        new = slice(job.told, len(continuation.answer))
        ids, scores, job.told = continuation.answer[new], continuation.scores[new], new.stop
        if not continuation.has_ended:
            job.tell(NewTokens(ids, scores=scores))
            return
        del self._jobs[continuation.number]
        job.tell(NewTokens(ids, "length" if continuation.is_cut_off else "stop", scores))

    def _arrivals(self) -> Iterator[Continuation]:
        """Yields what has been asked; waits for it where nothing runs."""
        while not self._is_stopping:
            try:
                job = self._arriving.get(block=not self._jobs)
            except queue.Empty:
                return
            if job is None:
                self._is_stopping = True
            elif not job.is_cancelled:
                number = next(self._numbers)
                self._jobs[number] = job
                yield self._continuation(number, job)

    def _continuation(self, number: int, job: AnswerJob) -> Continuation:
        ids = torch.tensor(job.question.ids, device=self._assistant.device)
        is_finished = EndStrings(job.ends, self._assistant.whole_text)
        return Continuation(
            number,
            ids,
            self._encoded(job.question.pictures),
            job.limits,
            job.seed,
            is_finished,
            first_answer=job.question.first_answer,
        )

    def _encoded(self, pictures: Sequence[Picture]) -> Tensor:
        """Returns the features [F, D] of pictures; those of the last requests are known."""
        new = {picture.digest: picture for picture in pictures if picture.digest not in self._features}
        if new:
            pixels = torch.cat([picture.pixels for picture in new.values()]).to(self._assistant.device)
            layouts = [picture.layout for picture in new.values()]
            features = encode(self._assistant.model, pixels, feature_order(layouts), picture_shapes(layouts))
            self._features |= zip(new, features.split([layout.tokens for layout in layouts]), strict=True)
        found = [self._features[picture.digest] for picture in pictures]
        for picture in pictures:
            self._features.move_to_end(picture.digest)
        while len(self._features) > _KEPT:
            self._features.popitem(last=False)
        return torch.cat(found) if found else torch.empty(0)
