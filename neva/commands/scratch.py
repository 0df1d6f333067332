"""A temporary folder for a run: libraries leave theirs behind when a run is killed, and nobody else removes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from neva.errors import ConfigError

PREFIX = ".neva-"
NAME = re.compile(re.escape(PREFIX) + r"tmp\w{8}")
"""Of such a folder, and of nothing that a person keeps in a folder for temporary files."""

LONGEST = 107 - len(f"/{PREFIX}tmp12345678/pymp-12345678/listener-12345678")
"""Characters of a path below which data workers can have sockets in such a folder: Linux allows a socket's 107."""

VARIABLE = "TMPDIR"
MATPLOTLIB = "MPLCONFIGDIR"


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """Gives this process, and those that it starts, a temporary folder of their own, and removes it at the end.

    What killed runs have left is removed first: the folder of a run that lives is locked.

    Raises:
        ConfigError: no folder for temporary files can be written.
    """
    try:
        outer = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error.strerror}: make room there, or set TMPDIR to a folder that has some"
        ) from error
    # that of the process which started this one, or one that leaves no room for another name
    if NAME.fullmatch(outer.name) or len(str(outer)) > LONGEST:
        yield
        return
    remove_abandoned(outer)
    unlocked = Path(tempfile.mkdtemp(dir=outer))
    lock = os.open(unlocked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = unlocked.rename(outer / f"{PREFIX}{unlocked.name}")
    before = {name: os.environ.get(name) for name in (VARIABLE, MATPLOTLIB)}
    _use({VARIABLE: str(folder), MATPLOTLIB: before[MATPLOTLIB] or _where_matplotlib_writes(folder)})
    try:
        yield
    finally:
        _use(before)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(outer: Path) -> None:
    """Removes folders of runs that no longer live; those of other users stay."""
    for folder in filter(lambda path: NAME.fullmatch(path.name), outer.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folder.stat().st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _where_matplotlib_writes(folder: Path) -> str | None:
    """Returns `folder` where there is no home to write in: matplotlib would make one in it, and miss it at its end."""
    return None if os.access(Path.home(), os.W_OK) else str(folder)


def _use(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None  # asked for anew
