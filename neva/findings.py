"""What the rooms tell about a run before it starts: each adds its own facts, the dry run prints them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Findings:
    """Facts (a name and a line each), notes on what is allowed but perhaps not meant, and problems to mend."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, line: str) -> None:
        """Adds a fact."""
        self.facts.append((name, line))
