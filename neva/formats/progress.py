"""A progress bar for what takes long, where there is a terminal to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bytes_bar(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """Yields a function that counts bytes.

    Args:
        total: of all bytes.
        what: is being done.
    """
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None, delay=2) as bar:
        yield bar.update
