"""Arrays that take long to make, in a memory-mapped folder beside the file they were made from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neva.errors import DataError, reason
from neva.formats.atomic_write import finished_target

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


def cached_arrays(
    source: Path, name: str, key: Mapping[str, Any], build: Callable[[], Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Returns what `build` returns, mapped into memory: processes of a machine share it.

    It is made by the first process that asks, while the others wait, and again when `source` (its size or its time of
    change) or `key` is another one. It lies in `<source>.neva/`, or, where that cannot be written, in the user's cache
    folder.

    Args:
        source: the file or folder that the arrays are made from.
        name: what they are; a file name.
        key: all else that they depend on, as JSON can write it.
        build: makes them, with names that are file names.

    Raises:
        DataError: there is no folder that can be written.
        OSError: it does not take the files.
    """
    _allow_many_files()
    home, stamp = cache_folder(source), _stamp(source)
    folder = home / f"{name}-{stamp}-{_digest(key)}"
    if not folder.is_dir():
        with _lock(home / f".{name}.lock"):
            if not folder.is_dir():
                _write(folder, build())
                _remove_older(home, name, stamp)
    return _mapped(folder)


@cache
def _allow_many_files() -> None:
    """Lets this process open as many files as it may: each array holds one, and data may have hundreds of sources."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def are_cached(source: Path, name: str, key: Mapping[str, Any]) -> bool:
    """Returns whether `cached_arrays` would find what it is asked for."""
    return (cache_folder(source) / f"{name}-{_stamp(source)}-{_digest(key)}").is_dir()


def _stamp(source: Path) -> str:
    status = source.stat()
    return _digest([status.st_size, status.st_mtime_ns])


def cache_folder(source: Path) -> Path:
    """Returns the folder, which exists, for what is kept of `source`.

    Raises:
        DataError: there is none that can be written.
    """
    beside = source.with_name(f"{source.name}.neva")
    try:
        beside.mkdir(exist_ok=True)
        if os.access(beside, os.W_OK):
            return beside
    except OSError:
        pass
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "neva" / f"{source.name}-{_digest(str(source.resolve()))}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # the latter of a user without a home
        raise DataError(
            f"what is kept of {source} can be written neither to {beside} nor to the user's cache folder "
            f"({reason(error)}): set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return folder


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one process at a time through, of all machines where the file system locks for all.

    Where it has no locks, several may make the same at once, and what the last one made stays.
    """
    with path.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    import numpy as np

    with finished_target(folder, overwrite=True, folder=True) as work:
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", array)


def _mapped(folder: Path) -> dict[str, NDArray[Any]]:
    import numpy as np

    # an array of no elements cannot be mapped
    return {
        path.stem: np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None)
        for path in sorted(folder.glob("*.npy"))
    }


def _remove_older(home: Path, name: str, stamp: str) -> None:
    """Removes what was made of an earlier state of the source."""
    for folder in home.glob(f"{name}-*-*"):
        if not folder.name.startswith(f"{name}-{stamp}-"):
            logger.info("%s is of an earlier state of the data: removed", folder)
            shutil.rmtree(folder, ignore_errors=True)
