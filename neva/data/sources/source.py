"""Where records come from: a source for each form of file, and the one that reads a given path."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from neva.errors import DataError
from neva.registry import SOURCES
from neva.templates.template import Turn


@dataclass(frozen=True)
class Record:
    """One conversation and the names of the image files that its `<image>` placeholders stand for, in order."""

    id: str
    turns: list[Turn]
    images: list[str]
    system: str | None
    place: str = field(default="", compare=False)
    """Where it stands, for messages (`line 3`); empty: messages give its index."""


class Records(Protocol):
    """The records of one path. Worker processes hold it too, so that a block of memory is better than objects."""

    @property
    def path(self) -> Path:
        """Where they come from, for messages."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Returns record `index`; SampleError when it is malformed."""


class Source(Protocol):
    """One form of file; register it in `neva.registry.SOURCES`."""

    @property
    def form(self) -> str:
        """What it reads, for messages: `.json (a list)`."""

    def accepts(self, path: Path) -> bool:
        """Returns whether it reads `path`, which exists."""

    def open(self, path: Path, datasets_exclude: Collection[str]) -> Records:
        """Returns the records of `path` without those whose `dataset` is excluded; DataError where there are none."""


def open_source(
    path: str | Path, datasets_exclude: Collection[str] = (), key: str = "model.data.data_path"
) -> Records:
    """Opens what a key of the configuration names with the first registered source that accepts it.

    Raises:
        DataError: nothing is there, no source accepts it, or it holds no records.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{key}: no file at {path}")
    source: Source | None = next((source for source in SOURCES if source.accepts(path)), None)
    if source is None:
        forms = ", ".join(source.form for source in SOURCES)
        raise DataError(f"{key}: {path} is of no form that neva reads; expected {forms}")
    return source.open(path, datasets_exclude)
