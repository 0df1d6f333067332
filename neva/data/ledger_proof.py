"""Whether a ledger shows every sample once an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from neva.data.ledger import LEARNT, LedgerPart, LedgerStep

SHOWN = 20


@dataclass
class _Epoch:
    """One epoch as far as the ledger has it."""

    number: int
    part: LedgerPart
    times: NDArray[np.uint8]
    """[N], how often the order's records came."""
    rows: int = 0
    """Of whole steps."""
    not_learnt: int = 0
    passed_over: int = 0
    last_step: int = 0
    is_over: bool = False
    """Whether the run went on to the next epoch of the same data."""
    is_left: bool = False
    """Whether the run left it for other data."""
    foreign: list[int] = field(default_factory=list)
    """Numbers that the data set does not have."""


@dataclass(frozen=True)
class Finding:
    """A line of the proof."""

    text: str
    is_wrong: bool


def prove(entries: Iterable[LedgerPart | LedgerStep]) -> Iterator[Finding]:
    """Yields what a ledger shows: gaps between steps, then epoch by epoch who came once, twice or never.

    Once is what a sampler promises of the places in its order. A source of a mixture whose weight is 2 has two places
    for each record; records that give no sample count where another was taken for them, or their pack went without.
    """
    epochs: dict[int, _Epoch] = {}
    part: LedgerPart | None = None
    before = 0
    for entry in entries:
        if isinstance(entry, LedgerPart):
            if part is not None and entry.data != part.data:
                yield from _closed(epochs, is_left=True)
            part = entry
            continue
        if entry.step > before + 1:
            yield Finding(f"steps {before + 1} to {entry.step - 1} are not in it", is_wrong=True)
        elif entry.step <= before:
            yield Finding(f"step {entry.step} comes behind step {before}", is_wrong=True)
        before = entry.step
        assert part is not None
        _count(epochs, part, entry)
        over = min(epochs) if len(epochs) > 1 else None
        if over is not None:
            epochs[over].is_over = True
            yield from _judged(epochs.pop(over))
    yield from _closed(epochs, is_left=False)


def _closed(epochs: dict[int, _Epoch], is_left: bool) -> Iterator[Finding]:
    for number in sorted(epochs):
        epochs[number].is_left = is_left
        yield from _judged(epochs.pop(number))


def _count(epochs: dict[int, _Epoch], part: LedgerPart, step: LedgerStep) -> None:
    size = part.data["records"]
    for number, asked in step.stands_for():
        if number not in epochs:
            epochs[number] = _Epoch(number, part, np.zeros(size, np.uint8))
        epoch = epochs[number]
        if asked >= size:
            epoch.foreign.append(asked)
            continue
        epoch.times[asked] += epoch.times[asked] < 255
        epoch.not_learnt += step.treatment != LEARNT
        epoch.last_step = step.step
    epochs[step.epoch].rows += part.global_batch_size
    epochs[step.epoch].part = part
    epochs[step.epoch].passed_over += sum(step.numbers[place] != asked for place, asked in step.exceptions)


def _judged(epoch: _Epoch) -> Iterator[Finding]:
    """Yields what is to be said of an epoch that is over, or as far as it has come."""
    part, once = epoch.part, int((epoch.times > 0).sum())
    twice, missing = np.flatnonzero(epoch.times > 1), part.samples - once
    left_rows = part.rows - epoch.rows
    is_cut = part.drop_last and 0 <= left_rows < part.global_batch_size
    is_wrong = bool(len(twice) or epoch.foreign or missing < 0)
    text = f"epoch {epoch.number}: {once:,} of {part.samples:,} samples, each once"
    if epoch.is_over and missing > 0 and not is_cut:
        is_wrong = True
    elif epoch.is_over and missing > 0:
        text += f"; {missing:,} left out, as model.drop_last leaves what fills no global batch"
    elif missing > 0:
        text += "; left for other data" if epoch.is_left else f"; as far as step {epoch.last_step:,}"
    if epoch.not_learnt:
        text += f"; {epoch.not_learnt:,} of them consumed and not learnt"
    if epoch.passed_over:
        text += f"; {epoch.passed_over:,} records gave no sample and were passed over"
    yield Finding(text if not is_wrong else f"epoch {epoch.number} is not each sample once", is_wrong)
    yield from _listed(epoch, "more than once", twice.tolist())
    if epoch.is_over and missing > 0 and not is_cut:
        yield from _listed(epoch, "never", np.flatnonzero(epoch.times == 0).tolist())
    yield from _listed(epoch, "though the data set ends before", epoch.foreign)


def _listed(epoch: _Epoch, what: str, numbers: list[int]) -> Iterator[Finding]:
    if numbers:
        shown = ", ".join(map(str, islice(numbers, SHOWN)))
        more = f" and {len(numbers) - SHOWN:,} more" if len(numbers) > SHOWN else ""
        yield Finding(f"epoch {epoch.number}, {what}: records {shown}{more}", is_wrong=True)
