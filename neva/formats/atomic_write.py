"""Targets that exist only when they are finished: written under a temporary name beside them, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neva.errors import CheckpointError, UserError


def check_source(source: Path) -> None:
    """Raises CheckpointError when there is nothing at `source`."""
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; expected a .nemo file or a Hugging Face folder")


def check_target(target: Path, overwrite: bool) -> None:
    """Raises UserError when there is something at `target` that must not be replaced."""
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; choose another target, or pass --force to replace it")


@contextmanager
def finished_target(target: str | Path, overwrite: bool = False, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path, which becomes `target` when the block ends without an error, else is removed.

    Args:
        target: the final path.
        overwrite: replace what is at `target`; it stays in place until its replacement is complete.
        folder: yield an existing empty folder, not the path of a file to write.

    Raises:
        UserError: `target` exists and `overwrite` is false.
    """
    target = Path(target)
    check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    result = work / "new"
    try:
        if folder:
            result.mkdir()
        yield result
        if target.is_dir() and not target.is_symlink():
            os.rename(target, work / "old")  # a directory cannot be replaced by a rename
        os.replace(result, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
