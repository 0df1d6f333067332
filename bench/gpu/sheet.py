"""Rows of the report on their way from a part's process to the page: a JSON line each, on disk at once."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

Value = str | int | float | bool
"""What a cell holds; a bool says whether something is as it must be."""


@dataclass(frozen=True)
class Row:
    """One line of a table: what was run, and figures by the heading of their column."""

    part: str
    name: str
    values: dict[str, Value]


@dataclass(frozen=True)
class Sheet:
    """Where a part writes.

    `tiny` chooses sizes that a CPU manages. `folder` is the report's own, for what a part needs on disk.
    """

    part: str
    path: Path
    folder: Path
    tiny: bool

    def add(self, name: str, **values: Value) -> None:
        """Appends a row; underscores of the headings are read as spaces."""
        row = Row(self.part, name, {heading.replace("_", " "): value for heading, value in values.items()})
        append(self.path, row)

    @contextmanager
    def row(self, name: str) -> Iterator[dict[str, Value]]:
        """Yields the figures of a row to fill; what fails becomes the row, with its traceback in the log."""
        values: dict[str, Value] = {}
        start = time.perf_counter()
        try:
            yield values
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            values["result"] = failure(error)
        self.add(name, **values, seconds=round(time.perf_counter() - start, 1))


def failure(error: BaseException) -> str:
    """Returns an error as one line for a cell."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"failed: {type(error).__name__}: {lines[0][:160]}".rstrip(": ")


def append(path: Path, row: Row) -> None:
    """Writes a row behind those that are there, through to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """Returns the rows written so far; a half-written last one is left out."""
    if not path.exists():
        return []
    complete = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
    return [Row(**json.loads(line)) for line in complete]
