"""What a dry run found, on a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from neva.constants import ADAPTERS, LANGUAGE_MODEL, PROJECTOR, SECOND_TOWER, VISION_TOWER
from neva.findings import Findings
from neva.model.preflight import PartSize

PART_NAMES = {
    VISION_TOWER: "vision tower",
    SECOND_TOWER: "second tower",
    PROJECTOR: "projector",
    LANGUAGE_MODEL: "language model",
    ADAPTERS: "adapters",
}


@dataclass(frozen=True)
class ReportedPart:
    """A part of the model, and whether checkpoints hold it."""

    size: PartSize
    is_saved: bool


def print_report(found: Findings, parts: list[ReportedPart], name: str) -> None:
    """Prints parameters by part, facts, notes, problems and the verdict."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"dry run of {name}\n", style="bold")
    if parts:
        console.print(_table(parts))
        console.print()
    for fact, line in found.facts:
        console.print(f"{fact:<14} {line}")
    for note in found.notes:
        console.print(f"note: {note}", style="yellow")
    if found.problems:
        console.print(f"\nnot ready, {len(found.problems)} to mend:", style="bold red")
        for problem in found.problems:
            console.print(f"- {problem}")
    else:
        console.print("\nready", style="bold green")


def _table(parts: list[ReportedPart]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    for column in ("parameters", "trained"):
        table.add_column(column, justify="right")
    table.add_column("in checkpoints")
    for part in parts:
        size, saved = part.size, "yes" if part.is_saved else "no, read again"
        table.add_row(PART_NAMES[size.name], f"{size.total:,}", f"{size.trained:,}", saved)
    total, trained = (sum(getattr(part.size, name) for part in parts) for name in ("total", "trained"))
    table.add_row("total", f"{total:,}", f"{trained:,}", "")
    return table
