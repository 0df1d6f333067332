"""From logits to the next token.

Dimensions: B batch, V vocabulary, T tokens so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    `greedy` takes the most likely token after the repetition penalty. Otherwise logits are divided by `temperature`,
    cut to the `top_k` largest (0: all) and to the smallest set whose probability reaches `top_p`, and drawn from.
    `repetition_penalty` divides positive and multiplies negative logits of tokens already seen
    (https://arxiv.org/abs/1909.05858); 1 switches it off.
    """

    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float


def next_tokens(
    logits_BV: Tensor, seen_BV: Tensor, sampling: Sampling, generators: list[torch.Generator] | None
) -> Tensor:
    """Chooses one token a row.

    Args:
        logits_BV: float logits.
        seen_BV: bool, True for tokens that the row's prompt or answer contains.
        sampling: the rule.
        generators: one a row, so that a row's draws do not depend on its neighbours; None when greedy.

    Returns:
        [B] token ids.
    """
    logits_BV = penalize_repetition(logits_BV.float(), seen_BV, sampling.repetition_penalty)
    if sampling.greedy:
        return logits_BV.argmax(-1)
    assert generators is not None
    probabilities_BV = restrict(logits_BV / sampling.temperature, sampling.top_k, sampling.top_p).softmax(-1)
    draws = [
        torch.multinomial(row, 1, generator=draw)
        for row, draw in zip(probabilities_BV, generators, strict=True)
    ]
    return torch.cat(draws)


def penalize_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Returns logits with those of seen tokens moved down by `penalty`."""
    if penalty == 1.0:
        return logits_BV
    penalized = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, penalized, logits_BV)


def restrict(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Returns logits with everything outside the `top_k` largest and the `top_p` nucleus at minus infinity."""
    if top_k > 0:
        smallest = logits_BV.topk(min(top_k, logits_BV.size(-1))).values[..., -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits_BV.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p  # the token that reaches top_p stays
        logits_BV = logits_BV.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits_BV
