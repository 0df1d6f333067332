"""A temporary folder for a run: libraries leave theirs behind when a run is killed, and nobody else removes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "neva-"
VARIABLE = "TMPDIR"


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """Gives this process, and those that it starts, a temporary folder of their own, and removes it at the end.

    What killed runs have left is removed first: the folder of a run that lives is locked.
    """
    outer = Path(tempfile.gettempdir())
    if outer.name.startswith(PREFIX):  # that of the process which started this one
        yield
        return
    remove_abandoned(outer)
    unlocked = Path(tempfile.mkdtemp(dir=outer))
    lock = os.open(unlocked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = unlocked.rename(outer / f"{PREFIX}{unlocked.name}")
    before = os.environ.get(VARIABLE)
    _use(str(folder))
    try:
        yield
    finally:
        _use(before)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(outer: Path) -> None:
    """Removes folders of runs that no longer live; those of other users stay."""
    for folder in outer.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folder.stat().st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _use(folder: str | None) -> None:
    if folder is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = folder
    tempfile.tempdir = None  # asked for anew
