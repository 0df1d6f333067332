"""From logits to the next token.

Dimensions: B batch, V vocabulary, T tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_COLDEST = torch.finfo(torch.float32).tiny
"""What a smaller temperature is taken for: dividing by less than float32 holds would leave no number."""
_USUAL_NUCLEUS = 64
"""Tokens; to order a vocabulary takes longer than a small model's step."""


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
    logits_BV: Tensor, seen_BV: Tensor | None, sampling: Sampling, generators: list[torch.Generator] | None
) -> Tensor:
    """Chooses one token a row.

    Args:
        logits_BV: float logits.
        seen_BV: bool, True for tokens that the row's prompt or answer contains; None where there is no penalty.
        sampling: the rule.
        generators: one a row, so that a row's draws do not depend on its neighbours; None when greedy.

    Returns:
        [B] token ids.
    """
    logits_BV = logits_BV.float()
    if seen_BV is not None:
        logits_BV = penalize_repetition(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.greedy:
        return logits_BV.argmax(-1)
    assert generators is not None
    # what is divided by little becomes no infinity
    below_best_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    scaled_BV = below_best_BV / max(sampling.temperature, _COLDEST)
    probabilities_BV = restrict(scaled_BV, sampling.top_k, sampling.top_p).softmax(-1)
    return draw(probabilities_BV, generators)


def draw(probabilities_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws a token [B] from each row's probabilities with one uniform number of its generator."""
    # in float64 a number below 1 times the sum stays below the sum, so that no token of probability 0 is taken
    sums_BV = probabilities_BV.double().cumsum(-1)
    uniform_B1 = torch.cat([torch.rand(1, 1, generator=each, device=each.device) for each in generators])
    return torch.searchsorted(sums_BV, uniform_B1 * sums_BV[:, -1:], right=True)[:, 0]


def penalize_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Returns logits with those of seen tokens moved down by `penalty`."""
    seen = seen_BV.nonzero(as_tuple=True)
    values = logits_BV[seen]
    return logits_BV.index_put(seen, torch.where(values > 0, values / penalty, values * penalty))


def restrict(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Returns logits with everything outside the `top_k` largest and the `top_p` nucleus at minus infinity."""
    if top_k > 0:
        smallest = logits_BV.topk(min(top_k, logits_BV.size(-1))).values[..., -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest, -torch.inf)
    if top_p < 1.0:
        logits_BV = _nucleus(logits_BV, top_p)
    return logits_BV


def _nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Returns logits with everything outside the smallest set whose probability reaches `top_p` at minus infinity.

    The most probable tokens alone are put in order, unless some row's set is larger.
    """
    probabilities_BV = logits_BV.softmax(-1)
    for count in (_USUAL_NUCLEUS, logits_BV.size(-1)):
        ordered, order = probabilities_BV.topk(min(count, logits_BV.size(-1)))
        is_inside = ordered.cumsum(-1) - ordered < top_p  # the token that reaches top_p stays
        is_inside[:, 0] = True  # also where float32 holds no number as small as top_p
        if not bool(is_inside[:, -1].any()):
            break
    return torch.full_like(logits_BV, -torch.inf).scatter(
        -1, order, logits_BV.gather(-1, order).masked_fill(~is_inside, -torch.inf)
    )
