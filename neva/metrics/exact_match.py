"""Exact match: the answer is one of those of the reference, whatever the case of its letters."""

from __future__ import annotations

from neva.metrics.metric import Reference, Verdict, best, register_metric


def judge(text: str, reference: Reference) -> Verdict:
    """Returns 1 for an answer that equals one of the reference, without outer spaces and in lower case."""
    said = text.strip().lower()
    return best(
        [Verdict(float(said == answer.strip().lower()), said, answer) for answer in reference.answers]
    )


register_metric("exact_match", "answers equal to one of the reference, whatever the case", judge)
