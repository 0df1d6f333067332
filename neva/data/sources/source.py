"""Where records come from: a source for each form of file, and the one that reads a given path."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from neva.config.data_sources import paths_of
from neva.errors import DataError
from neva.formats.stored_file import StoredFile
from neva.registry import SOURCES
from neva.templates.template import Turn

MediaFile: TypeAlias = Path | StoredFile
"""A file, or what lies inside one."""


@dataclass(frozen=True)
class Record:
    """One conversation and the media that its `<image>` and `<video>` placeholders stand for, in their order."""

    id: str
    turns: list[Turn]
    images: Sequence[str | MediaFile]
    """Names in the image folder, or files wherever they are."""
    system: str | None
    place: str = field(default="", compare=False)
    """Where it stands, for messages (`line 3`); empty: messages give its index."""
    videos: Sequence[str | MediaFile] = field(default_factory=list)
    """Names in the video folder, or files."""
    odd: tuple[str, ...] = field(default=(), compare=False)
    """What is odd about it and was read as LLaVA does: kinds of `neva.data.odd_records`."""
    source: int = field(default=0, compare=False)
    """Number of the source that it is of, in a mixture."""


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
        """Returns whether it reads `path`, which exists, or has braces and stands for several files."""

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
    if missing := next((file for file in paths_of(str(path)) if not file.exists()), None):
        raise DataError(f"{key}: no file at {missing}")
    source: Source | None = next((source for source in SOURCES if source.accepts(path)), None)
    if source is None:
        forms = ", ".join(source.form for source in SOURCES)
        raise DataError(f"{key}: {path} is of no form that neva reads; expected {forms}")
    return source.open(path, datasets_exclude)
