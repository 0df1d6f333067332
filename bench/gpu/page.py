"""The rows as a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.gpu.child import PARTS
from bench.gpu.sheet import Row, Value

MISSING = "Not measured yet."
TEXTS = Path(__file__).parent
"""What stands before and behind the tables."""


def page(rows: Sequence[Row]) -> str:
    """Returns the page; a heading whose parts have no row says that it is not measured."""
    head, notes = ((TEXTS / name).read_text(encoding="utf-8") for name in ("head.md", "notes.md"))
    blocks = [head]
    for heading in dict.fromkeys(part.heading for part in PARTS.values()):
        of_heading = [row for row in rows if PARTS[row.part].heading == heading]
        blocks.append(f"## {heading}\n\n{table(of_heading) if of_heading else MISSING}\n")
    return "\n".join([*blocks, notes])


def table(rows: Sequence[Row]) -> str:
    """Returns a Markdown table with a column for each heading that a row has."""
    columns = list(dict.fromkeys(heading for row in rows for heading in row.values))
    if "seconds" in columns:
        columns.remove("seconds")
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row.name, *(cell(row.values.get(column, "")) for column in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Value) -> str:
    """Returns a value as text; a bool as yes or **no**."""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/").replace("\n", " ")
