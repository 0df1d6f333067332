"""Exported folders exist only when they are proven, or say that they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from neva.convert.options import Options
from neva.convert.parity.figures import write_unverified
from neva.formats.atomic_write import finished_target


@contextmanager
def proven_folder(target: Path, options: Options, prove: Callable[[Path], None]) -> Iterator[Path]:
    """Yields an empty folder, which becomes `target` when `prove` accepts what was written into it.

    Raises:
        ParityError: it does not; there is no target then.
    """
    with finished_target(target, options.overwrite, folder=True) as folder:
        yield folder
        if options.verify:
            prove(folder)
        else:
            write_unverified(folder)
