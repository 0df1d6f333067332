"""Questions of one's own for a kit: a prompt file with answers, or a TSV of VLMEvalKit's form."""

from __future__ import annotations

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
from neva.registry import KITS

SUFFIXES = (".tsv", ".jsonl", ".json")
LONGEST_NUMBER = 64
"""Characters up to which VLMEvalKit reads `image` of a TSV as the index of the row that has the picture."""


def is_local(name: str) -> bool:
    """Whether a name of `--data` is a file, not a benchmark of the kit."""
    return name.endswith(SUFFIXES)


@dataclass(frozen=True)
class LocalQuestion:
    """A question of a file.

    Attributes:
        place: in the file, for messages.
        index: what tells it apart.
        text: without placeholders of pictures.
        hint: that stands before it, or None.
        pictures: files, by whole path; empty where `encoded` has it.
        encoded: picture in base64, or the index of the row that has it; else None.
        truth: what is right: letters for multiple choice, `Yes` and `No` where the metric is `yes_no`.
    """

    place: str
    index: str
    text: str
    hint: str | None
    pictures: tuple[str, ...]
    encoded: str | None
    truth: Reference


@dataclass(frozen=True)
class LocalData:
    """A file of questions, read.

    Attributes:
        source: the file.
        metric: how it is scored.
        questions: in the file's order.
    """

    source: Path
    metric: str
    questions: list[LocalQuestion]

    def name(self, end: str = "") -> str:
        """What a kit calls it: lower case, but for a word at the end that decides about a kit's metric."""
        words = ("neva", re.sub(r"\W+", "_", self.source.stem.lower()), end)
        return "_".join(word for word in words if word)


def read_local(path: Path, images: Path | None, metric: str | None, kit: str) -> LocalData:
    """Reads a TSV of VLMEvalKit's form, or a prompt file with answers, such as `neva infer` takes.

    Args:
        path: the file.
        images: folder of the images that a prompt file names; None: that of the file.
        metric: how to score; None: by its answers.
        kit: that is to score.

    Raises:
        ConfigError: a metric that the kit does not have.
        DataError: a row without question, picture or answer, or with answers that the metric cannot use.
    """
    found = read_rows(path)
    folder = images or path.parent
    references = [_reference(row, path, number) for number, row in enumerate(found, 1)]
    metric = metric or _metric_of(references)
    if metric not in (known := KITS[kit].metrics):
        raise ConfigError(f"{KITS[kit].title} does not score by {metric}; expected one of {', '.join(known)}")
    questions = [
        _question(number, row, truth, metric, folder, path)
        for number, (row, truth) in enumerate(zip(found, references, strict=True))
    ]
    if len({question.index for question in questions}) < len(questions):
        raise DataError(f"{path}: two rows have the same index")
    return LocalData(path, metric, questions)


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


def _question(
    number: int, row: Mapping[str, Any], truth: Reference, metric: str, folder: Path, path: Path
) -> LocalQuestion:
    place = f"{path}, row {number + 1},"
    text = row.get("question", row.get("prompt"))
    if not text:
        raise DataError(f"{place} has no question; expected one under question or prompt")
    pictures, encoded = _pictures(row, folder, place)
    return LocalQuestion(
        place=place,
        index=str(row.get("index", number)),
        text=str(text).replace(IMAGE_PLACEHOLDER, "").strip(),
        hint=str(row["hint"]) if "hint" in row else None,
        pictures=pictures,
        encoded=encoded,
        truth=Reference(_answers(truth, metric, place), truth.options, truth.category),
    )


def _pictures(row: Mapping[str, Any], folder: Path, place: str) -> tuple[tuple[str, ...], str | None]:
    """Returns files by their whole paths, or the content of a picture."""
    if "image_path" not in row and isinstance(row.get("image"), str) and not _is_file_name(row["image"]):
        return (), row["image"]
    names = row.get("image_path", row.get("images", row.get("image")))
    if not names:
        raise DataError(f"{place} has no picture; expected image (a file, or base64), images or image_path")
    paths = [folder / name for name in ([names] if isinstance(names, str) else names)]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{place} names {missing[0]}, which is no file: say with --images where they lie")
    return tuple(str(path.resolve()) for path in paths), None


def _is_file_name(text: str) -> bool:
    """Whether it is no base64, which has no dot, nor the number of a row that has the same picture."""
    return "." in text[-8:]


def _answers(truth: Reference, metric: str, place: str) -> tuple[str, ...]:
    if metric == "multiple_choice":
        with naming(place):
            return (right_letter(truth),)
    if metric == "yes_no":
        answer = said(truth.answers[0])
        if answer is None:
            raise DataError(f"{place} has the answer {truth.answers[0]!r:.80}; expected yes or no")
        return (answer.capitalize(),)
    return truth.answers
