"""Yes or no, with the figures of POPE (https://arxiv.org/abs/2305.10355), `yes` being positive."""

from __future__ import annotations

import re
from collections.abc import Sequence

from neva.errors import DataError
from neva.metrics.metric import Reference, Verdict, register_metric

YES, NO = "yes", "no"
WORD = re.compile(r"\w+")


def judge(text: str, reference: Reference) -> Verdict:
    """Returns 1 when the answer says what the reference says.

    Raises:
        DataError: the reference is neither yes nor no.
    """
    truth = said(reference.answers[0])
    if truth is None:
        raise DataError(f"its answer is {reference.answers[0]!r:.80}; expected yes or no")
    read = said(text)
    return Verdict(float(read == truth), read, truth)


def said(text: str) -> str | None:
    """Returns `yes` or `no`, whichever an answer has among its words; None: neither or both."""
    words = set(WORD.findall(text.lower())) & {YES, NO}
    return words.pop() if len(words) == 1 else None


def figures(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Returns accuracy, precision, recall, F1 and the share of answers that say yes, in percent.

    An answer that says neither is wrong, and no yes.
    """
    count = len(verdicts)
    said_yes = sum(verdict.read == YES for verdict in verdicts)
    is_yes = sum(verdict.truth == YES for verdict in verdicts)
    both = sum(verdict.read == verdict.truth == YES for verdict in verdicts)
    return {
        "accuracy": 100 * sum(verdict.score for verdict in verdicts) / count,
        "precision": _percent(both, said_yes),
        "recall": _percent(both, is_yes),
        "f1": _percent(2 * both, said_yes + is_yes),
        "says yes": _percent(said_yes, count),
        "says neither": _percent(sum(verdict.read is None for verdict in verdicts), count),
    }


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


register_metric("yes_no", "yes or no: accuracy, precision, recall, F1", judge, figures)
