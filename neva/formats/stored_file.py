"""A file that lies inside another one: a member of a tar, a cell of a table."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, eq=False)
class StoredFile:
    """Can be opened, read and named like a `Path`."""

    place: str
    """Where it lies, for messages: `shard.tar/0001.jpg`."""
    read_bytes: Callable[[], bytes]
    """Returns its content."""
    size: int
    """Bytes of it."""

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Returns its content as a file."""
        assert mode == "rb"
        return io.BytesIO(self.read_bytes())

    @property
    def name(self) -> str:
        """The last part of its place."""
        return PurePosixPath(self.place).name

    @property
    def suffix(self) -> str:
        """The ending of its name."""
        return PurePosixPath(self.place).suffix

    def __str__(self) -> str:
        return self.place

    def __repr__(self) -> str:
        return f"StoredFile({self.place!r})"
