"""Questions of one's own as VLMEvalKit reads them: a TSV whose name says how it is scored."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neva.constants import IMAGE_PLACEHOLDER
from neva.errors import ConfigError, DataError, naming
from neva.metrics.metric import Reference
from neva.metrics.multiple_choice import right_letter
from neva.metrics.reference import read_rows, reference_of
from neva.metrics.vqa import ENOUGH
from neva.metrics.yes_no import said

SUFFIXES = (".tsv", ".jsonl", ".json")

SCORED_AS: dict[str, tuple[str | None, str]] = {
    "multiple_choice": (None, ""),
    "yes_no": ("ImageYORNDataset", ""),
    "exact_match": ("ImageVQADataset", "GQA"),
    "vqa": ("ImageVQADataset", "TextVQA"),
    "relaxed": ("ImageVQADataset", "ChartQA"),
    "anls": ("ImageVQADataset", "DocVQA"),
}
"""Class of the kit, and the word in a benchmark's name by which that class takes a metric, by the metric's name."""


def is_local(name: str) -> bool:
    """Whether a name of `--data` is a file, not a benchmark of the kit."""
    return name.endswith(SUFFIXES)


@dataclass(frozen=True)
class LocalData:
    """A file of questions, read.

    Attributes:
        source: the file.
        metric: how it is scored.
        rows: as the kit's TSV has them.
    """

    source: Path
    metric: str
    rows: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """What the kit calls it: lower case, so that no other word in it decides about the metric."""
        words = ("neva", re.sub(r"\W+", "_", self.source.stem.lower()), SCORED_AS[self.metric][1])
        return "_".join(word for word in words if word)

    @property
    def kit_class(self) -> str | None:
        """Which class of the kit reads and scores it; None: the kit finds out."""
        return SCORED_AS[self.metric][0]

    def write(self, folder: Path) -> None:
        """Writes `NAME.tsv`."""
        columns = dict.fromkeys(column for row in self.rows for column in row)
        with (folder / f"{self.name}.tsv").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(columns), delimiter="\t")
            table.writeheader()
            table.writerows(self.rows)


def read_local(path: Path, images: Path | None, metric: str | None) -> LocalData:
    """Reads a TSV of the kit's form, or a prompt file with answers, such as `neva infer` takes.

    Args:
        path: the file.
        images: folder of the images that a prompt file names; None: that of the file.
        metric: how to score; None: by its answers.

    Raises:
        DataError: a row without question, picture or answer, or with answers that the metric cannot use.
    """
    found = read_rows(path)
    folder = images or path.parent
    references = [_reference(row, path, number) for number, row in enumerate(found, 1)]
    metric = metric or _metric_of(references)
    if metric not in SCORED_AS:
        raise ConfigError(f"VLMEvalKit does not score by {metric}; expected one of {', '.join(SCORED_AS)}")
    rows = [
        _row(number, row, truth, metric, folder, path)
        for number, (row, truth) in enumerate(zip(found, references, strict=True))
    ]
    if len({str(row["index"]) for row in rows}) < len(rows):
        raise DataError(f"{path}: two rows have the same index")
    return LocalData(path, metric, rows)


def _reference(row: Mapping[str, Any], path: Path, number: int) -> Reference:
    try:
        return reference_of(row)
    except DataError as error:
        raise DataError(f"{path}, row {number}: {error}") from error


def _metric_of(references: list[Reference]) -> str:
    if all(truth.options for truth in references):
        return "multiple_choice"
    if all(
        len(truth.answers) == 1 and said(truth.answers[0]) == truth.answers[0].lower() for truth in references
    ):
        return "yes_no"
    return "vqa" if all(len(truth.answers) > ENOUGH for truth in references) else "exact_match"


def _row(
    number: int, row: Mapping[str, Any], truth: Reference, metric: str, folder: Path, path: Path
) -> dict[str, Any]:
    """Returns a row of the TSV; a picture in base64 stays, a file is named by its whole path."""
    question = row.get("question", row.get("prompt"))
    if not question:
        raise DataError(f"{path}, row {number + 1}, has no question; expected one under question or prompt")
    question = str(question).replace(IMAGE_PLACEHOLDER, "").strip()
    kept = {"hint": row["hint"]} if "hint" in row else {}
    category = {} if truth.category is None else {"category": truth.category}
    picture = _picture(row, folder, f"{path}, row {number + 1},")
    answer = _answer(truth, metric, f"{path}, row {number + 1},")
    start = {"index": row.get("index", number), "question": question}
    return {**start, **kept, **picture, **truth.options, "answer": answer, **category}


def _picture(row: Mapping[str, Any], folder: Path, place: str) -> dict[str, str]:
    if "image_path" not in row and isinstance(row.get("image"), str) and not _is_file_name(row["image"]):
        return {"image": row["image"]}
    names = row.get("image_path", row.get("images", row.get("image")))
    if not names:
        raise DataError(f"{place} has no picture; expected image (a file, or base64), images or image_path")
    paths = [folder / name for name in ([names] if isinstance(names, str) else names)]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{place} names {missing[0]}, which is no file: say with --images where they lie")
    absolute = [str(path.resolve()) for path in paths]
    return {"image_path": absolute[0] if len(absolute) == 1 else str(absolute)}


def _is_file_name(text: str) -> bool:
    """Whether it is no base64, which has no dot, nor the number of a row that has the same picture."""
    return "." in text[-8:]


def _answer(truth: Reference, metric: str, place: str) -> str:
    if metric == "multiple_choice":
        with naming(place):
            return right_letter(truth)
    if metric == "yes_no":
        answer = said(truth.answers[0])
        if answer is None:
            raise DataError(f"{place} has the answer {truth.answers[0]!r:.80}; expected yes or no")
        return answer.capitalize()
    if len(truth.answers) == 1:
        return truth.answers[0]
    if metric == "exact_match":
        raise DataError(
            f"{place} has {len(truth.answers)} answers, of which VLMEvalKit takes the mean under exact_match: pass "
            "--metric anls, relaxed or vqa, or score answers of neva infer"
        )
    return str(list(truth.answers))
