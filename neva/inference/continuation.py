"""An answer as it grows behind its prompt, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

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
    """

    sampling: Sampling
    max_new_tokens: int
    min_new_tokens: int
    end_ids: Collection[int]


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
