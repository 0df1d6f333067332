"""Targets that exist only when they are finished: written under a temporary name beside them, then renamed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neva.errors import CheckpointError, UserError, naming_file

logger = logging.getLogger(__name__)

_PROCESS = re.compile(r"(\d{1,9})-\w+")


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

    What a process of this machine that was killed has left beside `target` is removed; what it had moved aside is
    put back.

    Args:
        target: the final path.
        overwrite: replace what is at `target`; it stays in place until its replacement is complete.
        folder: yield an existing empty folder, not the path of a file to write.

    Raises:
        UserError: `target` exists and `overwrite` is false.
    """
    given, target = Path(target), Path(target).resolve()  # what a link leads to is replaced, not the link
    if target.parent.is_dir():
        _clear_abandoned(target)
    check_target(given, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{_prefix(target)}{os.getpid()}-", dir=target.parent))
    result = work / "new"
    try:
        if folder:
            result.mkdir()
        with naming_file(given):
            yield result
        check_target(given, overwrite)  # another process may have been first
        if target.is_dir():
            os.rename(target, work / "old")  # a directory cannot be replaced by a rename
        os.replace(result, target)
    finally:
        _put_back(work, target)
        shutil.rmtree(work, ignore_errors=True)


def _prefix(target: Path) -> str:
    """Returns how the names of this machine's work folders for `target` begin; the process follows."""
    return f".{target.name}.partial-{socket.gethostname()}-"


def _clear_abandoned(target: Path) -> None:
    """Removes the work folders for `target` whose process is dead."""
    prefix = _prefix(target)
    for work in [path for path in target.parent.iterdir() if path.name.startswith(prefix)]:
        process = _PROCESS.fullmatch(work.name, len(prefix))
        if process and not _is_alive(int(process[1])):
            _put_back(work, target)
            shutil.rmtree(work, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def _put_back(work: Path, target: Path) -> None:
    """Undoes the first of two renames when there was no second one."""
    aside = work / "old"
    if aside.exists() and not os.path.lexists(target):
        os.rename(aside, target)
        logger.warning("%s was not replaced; what was there before is there again", target)
