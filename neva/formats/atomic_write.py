"""Targets that exist only when they are finished: written under a temporary name beside them, then
renamed.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_source(source: Path) -> None:
    """ValueError when there is nothing at `source`."""
    if not source.exists():
        raise ValueError(f"{source} does not exist; expected a .nemo file or a Hugging Face folder")


def check_target(target: Path, overwrite: bool) -> None:
    """ValueError when there is something at `target` that must not be replaced."""
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; choose another target, or pass --force to replace it")


@contextmanager
def finished_target(target: str | Path, overwrite: bool = False, folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path (of an existing empty directory when `folder`) that becomes `target` on
    success.

    An error or an interruption removes it. A target that exists is refused with ValueError unless
    `overwrite`; it then stays in place until its replacement is complete.
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
