"""What a metric is: a verdict on each answer, and figures over many verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from neva.registry import METRICS


@dataclass(frozen=True)
class Reference:
    """What is right.

    Attributes:
        answers: one, or one of each person who was asked.
        options: of a multiple choice question, by letter; empty where the reference has none.
        category: the question is counted in it too; None: in none.
    """

    answers: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    category: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth.

    Attributes:
        score: from 0 to 1.
        read: what the metric read out of the answer; None: nothing that it could use.
        truth: what it compared that with.
    """

    score: float
    read: str | None
    truth: str


@dataclass(frozen=True)
class Metric:
    """A way to score.

    Attributes:
        name: of the metric.
        words: what it counts, for help.
        judge: verdict on an answer's text; DataError for a reference that it cannot use.
        figures: from the verdicts, in percent by name; the first is the one to compare.
    """

    name: str
    words: str
    judge: Callable[[str, Reference], Verdict]
    figures: Callable[[Sequence[Verdict]], dict[str, float]]


def accuracy(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Returns the mean score in percent."""
    return {"accuracy": 100 * sum(verdict.score for verdict in verdicts) / len(verdicts)}


def register_metric(
    name: str,
    words: str,
    judge: Callable[[str, Reference], Verdict],
    figures: Callable[[Sequence[Verdict]], dict[str, float]] = accuracy,
) -> Metric:
    """Adds a metric to `neva.registry.METRICS` and returns it."""
    return METRICS.register(name, Metric(name, words, judge, figures))


def best(verdicts: Sequence[Verdict]) -> Verdict:
    """Returns the first of the verdicts with the highest score."""
    return max(verdicts, key=lambda verdict: verdict.score)
