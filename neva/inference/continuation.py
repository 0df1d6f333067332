"""An answer as it grows behind its prompt, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from neva.inference.sampling import Sampling


@dataclass(frozen=True)
class Limits:
    """How an answer's tokens are chosen and where it ends at the latest.

    Args:
        sampling: how tokens are chosen.
        max_new_tokens, min_new_tokens: bounds of an answer's length in tokens; below the minimum none of `end_ids` is
            taken.
        end_ids: tokens that end an answer; they are not part of it.
        scores: what is kept of the probabilities: nothing, those of the answer's tokens, or of the whole vocabulary.
        likeliest: how many of the likeliest tokens are kept with each of the answer's, where scores are.
    """

    sampling: Sampling
    max_new_tokens: int
    min_new_tokens: int
    end_ids: Collection[int]
    scores: Literal["none", "chosen", "all"] = "none"
    likeliest: int = 0


class Score(NamedTuple):
    """A token, its natural log probability, and those of the likeliest tokens in its place."""

    token: int
    log_prob: float
    likeliest: Sequence[tuple[int, float]] = ()


@dataclass
class Continuation:
    """A prompt, and its answer as it grows; who sets `has_ended` ends it.

    Args:
        number: what the answer is returned with.
        input_ids: [S], `IMAGE_TOKEN_ID` at image positions.
        features: [F, D] of the prompt's images.
        limits: how its tokens are chosen, and how many.
        seed: of the draws.
        is_finished: whether an answer, given as its ids, ends here (end strings); asked after every token.
        first_answer: where the first answer of the prompt begins; None: behind it.
    """

    number: int
    input_ids: Tensor
    features: Tensor
    limits: Limits
    seed: int
    is_finished: Callable[[list[int]], bool]
    answer: list[int] = field(default_factory=list)
    has_ended: bool = False
    is_cut_off: bool = False
    """Whether the answer was as long as it may be before it came to an end."""
    draws: torch.Generator | None = None
    seen_V: Tensor | None = None
    first_answer: int | None = None
    scores: list[Score] = field(default_factory=list)
    """Of the tokens, where asked for; that of the token that ended the answer is the last."""
    distributions: list[Tensor] = field(default_factory=list)
    """Log probabilities [V] that each token was chosen from, on the CPU, where asked for."""

    def score(self, log_probs_V: Tensor, token: int) -> None:
        """Keeps what was asked for of the next token, before it is added."""
        best = log_probs_V.topk(min(self.limits.likeliest, len(log_probs_V)))
        likeliest = [*zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        self.scores.append(Score(token, float(log_probs_V[token]), likeliest))
        if self.limits.scores == "all":
            self.distributions.append(log_probs_V.cpu())

    def add(self, token: int) -> None:
        """Takes the next token of the answer."""
        if token in self.limits.end_ids:
            self.has_ended = True
            return
        self.answer.append(token)
        length = len(self.answer)
        is_complete = length >= self.limits.min_new_tokens and self.is_finished(self.answer)
        self.is_cut_off = not is_complete and length == self.limits.max_new_tokens
        self.has_ended = is_complete or self.is_cut_off

    @property
    def prefix_length(self) -> int:
        """Tokens before the first answer."""
        return len(self.input_ids) if self.first_answer is None else self.first_answer
