"""Relaxed accuracy of charts: a number may be 5 % off, anything else must be the same.

Source: https://arxiv.org/abs/2203.10244, section 5.1, as pix2struct's `metrics.py` reads it.
"""

from __future__ import annotations

from neva.metrics.metric import Reference, Verdict, best, register_metric

TOLERANCE = 0.05


def judge(text: str, reference: Reference) -> Verdict:
    """Returns 1 for an answer that is close enough to one of the reference."""
    said = text.strip()
    return best(
        [Verdict(float(is_close(said, answer.strip())), said, answer) for answer in reference.answers]
    )


def is_close(said: str, truth: str) -> bool:
    """Whether `said` is the number `truth` with a relative error of at most 5 %, or the same text in any case.

    A truth of zero has no relative error: it must be said as it is written.
    """
    number, true_number = _number(said), _number(truth)
    if number is not None and true_number:
        return abs(number - true_number) / abs(true_number) <= TOLERANCE
    return said.lower() == truth.lower()


def _number(text: str) -> float | None:
    """Returns the number that a text is, a percentage as a fraction."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


register_metric("relaxed", "relaxed accuracy of charts: numbers within 5 %", judge)
