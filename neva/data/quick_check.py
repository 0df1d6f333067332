"""A look at some records, evenly spaced: most are tokenised and their images looked for, a few really read."""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import dataclass, field

from neva.data.dataset import ConversationDataset
from neva.data.odd_records import ODDITIES
from neva.errors import DataError, SampleError

logger = logging.getLogger(__name__)

BEFORE_TRAINING, READ_BEFORE_TRAINING = 256, 4
"""Records that every run looks at before its first step; a second of work, and the same ones on every rank."""


@dataclass
class BrokenRecords:
    """Records that give no sample, by what is wrong with them."""

    indices: set[int] = field(default_factory=set)
    kinds: dict[tuple[str, int, str], list[SampleError]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.indices)

    def add(self, index: int, error: SampleError) -> None:
        """Counts a record with those that were refused at the same place of the code, for the same kind of thing."""
        self.indices.add(index)
        origin = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]
        self.kinds.setdefault((origin.filename, origin.lineno or 0, error.kind), []).append(error)

    def lines(self, dataset: ConversationDataset, passed_over: bool) -> list[str]:
        """Returns the first record of each kind that the data set passes over, or not, with the number of its like."""
        return [
            f"{first} ({len(others):,} more records like it)" if others else str(first)
            for first, *others in self.kinds.values()
            if dataset.passes_over(first) is passed_over
        ]


@dataclass
class QuickCheck:
    """What was seen."""

    checked: int = 0
    broken: BrokenRecords = field(default_factory=BrokenRecords)
    lengths: list[int] = field(default_factory=list)
    """Tokens of the samples that were really read."""
    shortened: int = 0
    """Of the checked ones, those that are cut to fit into a sequence."""
    odd: dict[str, int] = field(default_factory=dict)
    """How many of them are odd, by what is odd about them."""


def check_quickly(dataset: ConversationDataset, most: int, most_s: float, most_read: int) -> QuickCheck:
    """Looks at `most` records, or as many as `most_s` seconds allow, and decodes the images of `most_read`.

    Raises:
        DataError: something is wrong that is no matter of a single record.
    """
    seen, stop = QuickCheck(), time.monotonic() + most_s
    for index in range(0, len(dataset), -(-len(dataset) // most)):
        try:
            dataset.check(index)
        except SampleError as error:
            seen.broken.add(index, error)
        seen.checked += 1
        if time.monotonic() > stop:
            break
    for index in range(0, len(dataset), max(1, len(dataset) // most_read))[:most_read]:
        if index in seen.broken.indices:
            continue
        try:
            seen.lengths.append(len(dataset.read(index).input_ids))
        except SampleError as error:
            seen.broken.add(index, error)
    seen.shortened = int(dataset.shortened.sum())
    seen.odd = {kind: count for kind in ODDITIES if (count := dataset.odd.count(kind))}
    dataset.shortened.zero_()  # a run counts those that it trains on
    dataset.odd.clear()
    return seen


def check_before_training(dataset: ConversationDataset) -> None:
    """Lets a run begin unless some of its first looks would end it later.

    Raises:
        DataError: a line for each kind of broken record, where the run does not pass over it.
    """
    seen = check_quickly(dataset, BEFORE_TRAINING, float("inf"), READ_BEFORE_TRAINING)
    problems = seen.broken.lines(dataset, passed_over=False)
    if problems:
        raise DataError("\n".join(problems))
    for line in seen.broken.lines(dataset, passed_over=True):
        logger.warning("to be skipped: %s", line)
