"""Questions of one's own as VLMEvalKit reads them: a TSV whose name says how it is scored."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from neva.errors import DataError
from neva.evaluation.kits.local_data import LocalData, LocalQuestion

SCORED_AS: dict[str, tuple[str | None, str]] = {
    "multiple_choice": (None, ""),
    "yes_no": ("ImageYORNDataset", ""),
    "exact_match": ("ImageVQADataset", "GQA"),
    "vqa": ("ImageVQADataset", "TextVQA"),
    "relaxed": ("ImageVQADataset", "ChartQA"),
    "anls": ("ImageVQADataset", "DocVQA"),
}
"""Class of the kit, and the word in a benchmark's name by which that class takes a metric, by the metric's name."""


def kit_name(data: LocalData) -> str:
    """Returns what the kit calls a file: no other word in it decides about the metric."""
    return data.name(SCORED_AS[data.metric][1])


def kit_class(data: LocalData) -> str | None:
    """Returns which class of the kit reads and scores a file; None: the kit finds out."""
    return SCORED_AS[data.metric][0]


def write_tsv(data: LocalData, folder: Path) -> None:
    """Writes `NAME.tsv`.

    Raises:
        DataError: a question with several answers, of which the kit would take the mean.
    """
    rows = [_row(question, data.metric) for question in data.questions]
    columns = dict.fromkeys(column for row in rows for column in row)
    with (folder / f"{kit_name(data)}.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(columns), delimiter="\t")
        table.writeheader()
        table.writerows(rows)


def _row(question: LocalQuestion, metric: str) -> dict[str, Any]:
    """Returns a row of the TSV; a picture in base64 stays, a file is named by its whole path."""
    row: dict[str, Any] = {"index": question.index, "question": question.text}
    if question.hint is not None:
        row["hint"] = question.hint
    if question.encoded is not None:
        row["image"] = question.encoded
    else:
        paths = list(question.pictures)
        row["image_path"] = paths[0] if len(paths) == 1 else str(paths)
    row |= {**question.truth.options, "answer": _answer(question, metric)}
    return row if question.truth.category is None else {**row, "category": question.truth.category}


def _answer(question: LocalQuestion, metric: str) -> str:
    answers = question.truth.answers
    if len(answers) == 1:
        return answers[0]
    if metric == "exact_match":
        raise DataError(
            f"{question.place} has {len(answers)} answers, of which VLMEvalKit takes the mean under exact_match: pass "
            "--metric anls, relaxed or vqa, or score answers of neva infer"
        )
    return str(list(answers))
