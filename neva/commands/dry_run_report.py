"""What a dry run found, on a terminal."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

PART_NAMES = {"vision_tower": "vision tower", "projector": "projector", "language_model": "language model"}


@dataclass
class Report:
    """What a dry run found. `facts` are pairs of a name and a line."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    parts: list[tuple[str, int, int, bool]] = field(default_factory=list)
    """Part, parameters, those trained, whether checkpoints hold it."""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, line: str) -> None:
        """One more fact."""
        self.facts.append((name, line))


def show(report: Report, name: str) -> None:
    """Print a report: parameters by part, facts, notes, problems, verdict."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"dry run of {name}\n", style="bold")
    if report.parts:
        console.print(_table(report.parts))
        console.print()
    for fact, line in report.facts:
        console.print(f"{fact:<14} {line}")
    for note in report.notes:
        console.print(f"note: {note}", style="yellow")
    if report.problems:
        console.print(f"\nnot ready, {len(report.problems)} to mend:", style="bold red")
        for problem in report.problems:
            console.print(f"- {problem}")
    else:
        console.print("\nready", style="bold green")


def _table(parts: list[tuple[str, int, int, bool]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    for column in ("parameters", "trained"):
        table.add_column(column, justify="right")
    table.add_column("in checkpoints")
    for part, total, trained, saved in parts:
        table.add_row(PART_NAMES[part], f"{total:,}", f"{trained:,}", "yes" if saved else "no, read again")
    table.add_row("total", f"{sum(p[1] for p in parts):,}", f"{sum(p[2] for p in parts):,}", "")
    return table
