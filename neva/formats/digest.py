"""What a file holds, as a hash that is computed once."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from neva.formats.tar_writer import sha256_of


def file_digest(path: Path) -> str:
    """Returns size and sha256 of a file; a file that has not changed is read once."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return f"{size} bytes, sha256 {sha256_of(path, 0, size)[:12]}"
