"""One process at a time: a lock of the kernel on a file, which says who has it.

That of a process that has died is nobody's. Over NFS the server keeps it, on Lustre only where it is mounted with
`flock`; where the file system has no locks, that is said and nothing is kept.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

_held: list[TextIO] = []
"""Locks of this process."""


class HeldError(Exception):
    """Another process has the lock; the message says which."""


def _let_go() -> None:
    """Closes what a data worker has inherited: it may outlive a run that is killed, and would keep the next one out."""
    for file in _held:
        file.close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes out until the block or the process ends.

    Args:
        path: of the lock, a file of its own.

    Raises:
        HeldError: another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise HeldError(_owner(file.read())) from error
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): see to it that no second process writes there",
                path.parent,
                error.strerror,
            )
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": since}))
        file.flush()
        _held.append(file)
        try:
            yield
        finally:
            _held.remove(file)


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "its first process has just begun"
