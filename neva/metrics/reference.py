"""Files of questions with their right answers, in the forms in which benchmarks come."""

from __future__ import annotations

import ast
import csv
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from neva.errors import DataError
from neva.formats.json import decode_text, parse_json, shown
from neva.metrics.metric import Reference
from neva.metrics.multiple_choice import LETTERS

ANSWER_KEYS = ("answers", "answer", "truth", "label", "ground_truth", "gt_answer", "multiple_choice_answer")
OPTION_KEYS = ("options", "choices")
LISTS = ("annotations", "data", "questions")
"""Where a `.json` object has its rows: VQA v2's annotations, TextVQA's and DocVQA's data."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `.jsonl`, `.json` or `.tsv` file.

    Raises:
        DataError: no such file, none of these, or a row that is no object.
    """
    if not path.is_file():
        raise DataError(f"no file at {path}; expected .jsonl, .json or .tsv")
    if path.suffix == ".tsv":
        rows: list[Any] = list(read_tsv(path))
    elif path.suffix == ".jsonl":
        lines = decode_text(path.read_bytes(), path, DataError).split("\n")
        rows = [_line(text, path, number) for number, text in enumerate(lines, 1) if text.strip()]
    elif path.suffix == ".json":
        rows = _list(parse_json(path.read_bytes(), path, DataError), path)
    else:
        raise DataError(f"{path} is no .jsonl, .json or .tsv file")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}, is {shown(row)}; expected an object with keys")
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def read_tsv(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a TSV file by column; an empty cell is left out.

    Raises:
        DataError: it is none in UTF-8.
    """
    csv.field_size_limit(sys.maxsize)  # pictures in base64
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                yield {column: cell for column, cell in row.items() if column is not None and cell}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no .tsv file in UTF-8 ({error}): save it as such") from error


def _line(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}, is not valid JSON ({error})") from error


def _list(content: Any, path: Path) -> list[Any]:
    if isinstance(content, dict):
        content = next((content[key] for key in LISTS if isinstance(content.get(key), list)), None)
    if not isinstance(content, list):
        raise DataError(f"{path} holds no list of rows, nor an object with one under {', '.join(LISTS)}")
    return content


def reference_of(
    row: Mapping[str, Any], answer_key: str | None = None, category_key: str = "category"
) -> Reference:
    """Returns what is right for a row.

    Args:
        row: of a reference file: the answer or answers, and options as columns `A`, `B`, … or as a list.
        answer_key: where the answers are; None: under the first of `ANSWER_KEYS` that it has.
        category_key: where the category is, which it need not have.

    Raises:
        DataError: it has no answer.
    """
    keys = (answer_key,) if answer_key else ANSWER_KEYS
    found = next((row[key] for key in keys if row.get(key) not in (None, "", [])), None)
    if found is None:
        raise DataError(f"it has no answer; expected one under {', '.join(keys)}")
    options = _options(row)
    answers = _answers(found)
    if options and isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(options):
        answers = (list(options)[found],)
    category = row.get(category_key)
    return Reference(answers, options, None if category is None else str(category))


def _answers(found: Any) -> tuple[str, ...]:
    if isinstance(found, str) and found.startswith("["):
        with suppress(ValueError, SyntaxError):
            found = ast.literal_eval(found)  # as TSV files have lists
    if isinstance(found, bool):
        return ("yes" if found else "no",)
    if not isinstance(found, list):
        return (str(found),)
    return tuple(
        str(item["answer"] if isinstance(item, dict) and "answer" in item else item) for item in found
    )


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    listed = next((row[key] for key in OPTION_KEYS if isinstance(row.get(key), list)), None)
    if listed is not None:
        return dict(zip(LETTERS, map(str, listed), strict=False))
    return {letter: str(row[letter]) for letter in LETTERS if letter in row}
