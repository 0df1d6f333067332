"""Batches for Lightning's loop, and how long they were waited for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from neva.data.batch import Batch


class UnsizedLoader:
    """Batches without a length.

    After a resume Lightning counts batches from the start of the run, a loader from where it resumes; comparing the
    two would end the run early.
    """

    def __init__(self, batches: Iterable[list[Batch]]) -> None:
        self.batches = batches
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self.batches)
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self.waited_s += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def last_wait_s(self) -> float:
        """Returns how long batches were waited for since this was last asked."""
        waited_s, self.waited_s = self.waited_s, 0.0
        return waited_s
