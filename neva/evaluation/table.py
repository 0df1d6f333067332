"""Results as tables to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neva.evaluation.results import Entry
from neva.evaluation.score import Scores

SAME_FOR_BOTH = ("transformers", "vlmevalkit", "lmms-eval")
"""What moves scores when its version does."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as aligned columns, the first to the left, the others to the right; row 0 is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        right = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *right]))
    return "\n".join(line.rstrip() for line in lines)


def scores_table(scores: Scores) -> str:
    """Returns the figures by category, in percent."""
    names = list(next(iter(scores.figures.values())))
    rows = [["category", "questions", *names]]
    rows += [
        [category, f"{scores.counts[category]:,}", *(f"{figures[name]:.2f}" for name in names)]
        for category, figures in scores.figures.items()
    ]
    return table(rows)


def entries_table(entries: Sequence[Entry]) -> str:
    """Returns a line for each benchmark; those without a score say why underneath."""
    rows = [["benchmark", "questions", "unanswered", "metric", "score"]]
    rows += [
        [
            entry["benchmark"],
            _count(entry["questions"]),
            _count(entry["unanswered"]),
            entry["metric"] or "-",
            _score(entry["score"]),
        ]
        for entry in entries
    ]
    problems = [f"{entry['benchmark']}: {entry['problem']}" for entry in entries if entry["problem"]]
    return "\n".join([table(rows), *problems])


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Returns two models' scores beside each other, and what keeps them from being comparable."""
    ours, others = first["benchmarks"], second["benchmarks"]
    rows, remarks = [["benchmark", "metric", "A", "B", "B - A"]], []
    for name in sorted({*ours, *others}):
        a, b = ours.get(name), others.get(name)
        known = a or b
        scores = [entry and entry["score"] for entry in (a, b)]
        both = None not in scores
        rows.append(
            [
                name,
                (known and known["metric"]) or "-",
                *map(_score, scores),
                f"{scores[1] - scores[0]:+.{_decimals(*scores)}f}" if both else "-",
            ]
        )
        if a and b:
            remarks += [f"{name}: {remark}" for remark in _differences(a, b)]
    head = [f"A: {first['model']}", f"B: {second['model']}", ""]
    return "\n".join([*head, table(rows), *([""] if remarks else []), *remarks])


def _differences(a: Entry, b: Entry) -> list[str]:
    pairs: list[tuple[str, Any, Any]] = [
        (package, a["versions"].get(package), b["versions"].get(package)) for package in SAME_FOR_BOTH
    ]
    pairs += [("questions", a["questions"], b["questions"]), ("prompts", a["prompts"], b["prompts"])]
    pairs += [("metric", a["metric"], b["metric"])]
    return [f"not the same {what}: {one} and {other}" for what, one, other in pairs if one != other]


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.{_decimals(score)}f}"


def _decimals(*scores: float) -> int:
    """Returns how many digits show a hundredth of a percent: some of a kit's scores are shares of 1."""
    return 4 if all(0 <= score <= 1 for score in scores) else 2
