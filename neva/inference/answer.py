"""Answers to requests, in their order; a prompt is begun as soon as another one's answer has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from neva.constants import IMAGE_PLACEHOLDER, IMAGE_TOKEN_ID
from neva.errors import DataError
from neva.inference.generate import Continuation, ContinuousBatch, Limits
from neva.inference.images import SharedMedia
from neva.inference.load import Assistant
from neva.inference.prompts import Request
from neva.inference.sampling import Sampling
from neva.inference.stopping import EndStrings


@dataclass(frozen=True)
class Answer:
    """What the model says, and the whole text with its prompt, each image as one placeholder."""

    text: str
    full_text: str
    tokens: Sequence[ScoredToken] | None = None
    """What it was made of, where that was asked for, with the token that ended it."""
    distributions_TV: Tensor | None = None
    """The log probabilities of the vocabulary where each token was chosen, where they were asked for."""


class ScoredToken(NamedTuple):
    """A token of an answer, as text too, and its natural log probability."""

    id: int
    text: str
    log_prob: float


def answer_all(
    assistant: Assistant, settings: DictConfig, requests: Mapping[int, Request]
) -> Iterator[dict[int, Answer | DataError]]:
    """Yields the answers, some at a time, in the order of the requests; one that cannot be asked has its error.

    Args:
        assistant: the model.
        settings: the `inference` section.
        requests: by number, which decides how the request's sampling is seeded.
    """
    found: dict[int, Answer | DataError] = {}
    waiting = deque(requests)
    with ThreadPoolExecutor(max_workers=2) as pool:
        prompts = _Prompts(
            assistant, settings, requests, found, SharedMedia(assistant, requests.values(), pool)
        )
        batch = ContinuousBatch(assistant.decoder, settings.batch_size)
        for continuation in batch.answers(prompts.continuations()):
            found[continuation.number] = prompts.answer(continuation)
            if ready := _ready(waiting, found):
                yield ready
    if ready := _ready(waiting, found):
        yield ready


def _ready(waiting: deque[int], found: dict[int, Answer | DataError]) -> dict[int, Answer | DataError]:
    """Takes out what was found for the first of those that wait, up to one that has no answer yet."""
    ready = {}
    while waiting and waiting[0] in found:
        number = waiting.popleft()
        ready[number] = found.pop(number)
    return ready


def _limits(assistant: Assistant, settings: DictConfig) -> Limits:
    return Limits(
        Sampling(
            settings.greedy, settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty
        ),
        settings.tokens_to_generate,
        settings.min_tokens_to_generate,
        assistant.encoder.end_ids,
        "all" if settings.all_probs else "chosen" if settings.compute_logprob else "none",
    )


class _Prompts:
    """Requests as the model reads them, and what it generates as answers."""

    def __init__(
        self,
        assistant: Assistant,
        settings: DictConfig,
        requests: Mapping[int, Request],
        found: dict[int, Answer | DataError],
        images: SharedMedia,
    ) -> None:
        self._assistant, self._settings = assistant, settings
        self._requests, self._found, self._images = requests, found, images
        self._limits = _limits(assistant, settings)
        self._ends = (*settings.end_strings, *assistant.encoder.end_strings)
        self._ids: dict[int, list[int]] = {}
        self._media_tokens: dict[int, list[int]] = {}

    def continuations(self) -> Iterator[Continuation]:
        """Yields the requests that can be asked; the errors of the others are found."""
        ahead: deque[int] = deque()
        for number, request in self._requests.items():
            try:
                if request.error is not None:
                    raise DataError(request.error)
                question, media_tokens = self._images.question(request)
                ids = self._assistant.encoder.prompt(question, media_tokens, request.system, request.label)
            except DataError as error:
                self._found[number] = error
                continue
            if not self._settings.add_BOS and ids[0] == self._assistant.tokenizer.bos_token_id:
                del ids[0]
            self._ids[number], self._media_tokens[number] = ids, media_tokens
            self._images.prepare(request)
            ahead.append(number)
            if len(ahead) > 2 * self._settings.batch_size:
                yield from self._continuation(ahead.popleft())
        for number in ahead:
            yield from self._continuation(number)

    def _continuation(self, number: int) -> Iterator[Continuation]:
        """Yields the continuation of a request, unless an image of it cannot be read."""
        features = self._images.features(self._requests[number])
        if isinstance(features, DataError):
            self._found[number] = features
            return
        ids = torch.tensor(self._ids[number], device=self._assistant.device)
        is_finished = EndStrings(self._ends, self._assistant.whole_text)
        seed = self._settings.seed + number
        yield Continuation(number, ids, features, self._limits, seed, is_finished)

    def answer(self, ended: Continuation) -> Answer:
        """Returns the answer to a request."""
        text = cut(self._assistant.text(ended.answer), self._ends)
        ids, media_tokens = self._ids.pop(ended.number), self._media_tokens.pop(ended.number)
        full_text = _readable(self._assistant, ids, media_tokens) + text
        if not ended.scores:
            return Answer(text.strip(), full_text)
        tokens = [
            ScoredToken(score.token, self._assistant.whole_text([score.token]), score.log_prob)
            for score in ended.scores
        ]
        distributions = torch.stack(ended.distributions) if ended.distributions else None
        return Answer(text.strip(), full_text, tokens, distributions)


def cut(text: str, end_strings: Sequence[str]) -> str:
    """Returns the text in front of the first end string."""
    return text[: min((text.find(end) for end in end_strings if end in text), default=len(text))]


def _readable(assistant: Assistant, ids: list[int], media_tokens: Sequence[int]) -> str:
    """Returns the prompt as text, the positions of each image as one placeholder."""
    text, start = "", 0
    for tokens in media_tokens:
        image_at = ids.index(IMAGE_TOKEN_ID, start)
        text += assistant.text(ids[start:image_at]) + IMAGE_PLACEHOLDER
        start = image_at + tokens
    return text + assistant.text(ids[start:])
