"""Answers against a reference: which belongs to which, what each is worth, and figures by category."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neva.errors import DataError
from neva.formats.json import json_line
from neva.metrics.metric import Metric, Reference, Verdict
from neva.metrics.reference import read_rows, reference_of

KEYS = ("question_id", "questionId", "id", "index")
ALL = "all"


@dataclass(frozen=True)
class Asked:
    """How a reference file is to be read.

    Attributes:
        key: by which answers and references belong together; None: the first of `KEYS` that tells all rows apart, else
            the order of both files.
        answer_key: where the reference has its answers; None: where it is usual.
        category_key: where the reference has the category.
        is_partial: a reference without an answer is left out instead of refused.
    """

    key: str | None = None
    answer_key: str | None = None
    category_key: str = "category"
    is_partial: bool = False


@dataclass(frozen=True)
class Scores:
    """What answers are worth.

    Attributes:
        figures: in percent by category and name; the category `all` has all questions.
        counts: questions by category.
        rows: a line for each answer: what was said, read and right.
        unanswered: answers that are errors, counted as wrong.
        model_id: that the answers name, or None.
        first_prompt: the first conversation as the model saw it, up to its answer, or None.
    """

    figures: dict[str, dict[str, float]]
    counts: dict[str, int]
    rows: list[dict[str, Any]]
    unanswered: int
    model_id: str | None
    first_prompt: str | None


def score_files(answers: Path, reference: Path, metric: Metric, asked: Asked) -> Scores:
    """Returns the scores of a file that `neva infer` has written.

    Raises:
        DataError: a file that cannot be read, rows that do not belong together, a reference without an answer.
    """
    said, right = read_rows(answers), read_rows(reference)
    pairs = _pairs(said, right, asked, answers, reference)
    verdicts: dict[str, list[Verdict]] = defaultdict(list)
    rows = []
    for place, (row, number) in enumerate(pairs, 1):
        text = _text(row, f"{answers}, row {place}")
        verdict, truth = _judge(text, right[number], metric, asked, f"{reference}, row {number + 1}")
        for category in dict.fromkeys((ALL, ALL if truth.category is None else truth.category)):
            verdicts[category].append(verdict)
        rows.append(_line(row, truth, verdict))
    return Scores(
        {category: metric.figures(found) for category, found in verdicts.items()},
        {category: len(found) for category, found in verdicts.items()},
        rows,
        sum("error" in row for row, _ in pairs),
        said[0].get("model_id"),
        _first_prompt(said[0]),
    )


def _text(row: Mapping[str, Any], place: str) -> str:
    """Returns what was said, nothing where the row is an error.

    Raises:
        DataError: it does not say.
    """
    found = row.get("text")
    if found is None and "error" not in row:
        raise DataError(f"{place}: found no answer under 'text', where neva infer writes it; rename its key")
    return "" if found is None else str(found)


def _judge(
    text: str, right: Mapping[str, Any], metric: Metric, asked: Asked, place: str
) -> tuple[Verdict, Reference]:
    try:
        truth = reference_of(right, asked.answer_key, asked.category_key)
        return metric.judge(text, truth), truth
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _pairs(
    said: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]], asked: Asked, *paths: Path
) -> list[tuple[Mapping[str, Any], int]]:
    """Returns each answer with the number of its reference."""
    key = asked.key or next(
        (key for key in KEYS if _tells_apart(said, key) and _tells_apart(right, key)), None
    )
    if key is None:
        _refuse_other_order(said, right, asked, *paths)
        return [(row, number) for number, row in enumerate(said)]
    for rows, path in zip((said, right), paths, strict=True):
        if not _tells_apart(rows, key):
            raise DataError(f"{path}: {key} is absent from rows or twice there: choose another --key")
    numbers = {str(row[key]): number for number, row in enumerate(right)}
    if strangers := [row[key] for row in said if str(row[key]) not in numbers]:
        raise DataError(
            f"{paths[1]} has no {key} {strangers[0]!r}, which {paths[0]} answers ({len(strangers)} of {len(said)})"
        )
    _refuse_fewer(len(said), len(right), asked, *paths)
    return [(row, numbers[str(row[key])]) for row in said]


def _tells_apart(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    values = Counter(str(row[key]) for row in rows if row.get(key) is not None)
    return len(values) == len(rows)


def _refuse_other_order(
    said: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]], asked: Asked, *paths: Path
) -> None:
    if len(said) > len(right):
        raise DataError(f"{paths[0]} has {len(said)} answers to the {len(right)} questions of {paths[1]}")
    for number, (row, truth) in enumerate(zip(said, right, strict=False), 1):
        for key in ("prompt", "image"):
            if key in row and key in truth and row[key] != truth[key]:
                raise DataError(
                    f"{paths[0]} and {paths[1]} have other rows: {key} {number} is {row[key]!r:.80} and "
                    f"{truth[key]!r:.80}; expected the same order, or a --key that both have"
                )
    _refuse_fewer(len(said), len(right), asked, *paths)


def _refuse_fewer(answered: int, questions: int, asked: Asked, *paths: Path) -> None:
    if answered < questions and not asked.is_partial:
        raise DataError(
            f"{paths[0]} answers {answered} of the {questions} questions of {paths[1]}; let neva infer finish, or pass "
            "--partial to score those alone"
        )


def _line(row: Mapping[str, Any], truth: Reference, verdict: Verdict) -> dict[str, Any]:
    kept = {key: row[key] for key in (*KEYS, "prompt", "image", "text") if key in row}
    return {**kept, "read": verdict.read, "right": list(truth.answers), "score": verdict.score}


def _first_prompt(row: Mapping[str, Any]) -> str | None:
    full, text = row.get("full_text"), row.get("text")
    if not isinstance(full, str) or not isinstance(text, str):
        return None
    return full.rstrip().removesuffix(text).rstrip()


def lines(scores: Scores) -> str:
    """Returns the rows as JSON lines."""
    return "".join(map(json_line, scores.rows))
