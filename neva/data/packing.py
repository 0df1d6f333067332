"""Which samples share a sequence: a plan for all of them, made once, from their lengths in the order of an epoch.

A window of the order is packed by best fit: its samples, the longest first, go each to the fullest pack that still has
room. Samples of one length are interchangeable, so they are placed many at a time: the work depends on how many
different lengths there are, not on how many samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW = 2**14
"""Samples of the order that are packed together; samples further apart never share a pack."""


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """P packs of N samples, each in exactly one; the arrays may be mapped from a file."""

    samples: NDArray[np.int64]
    """[N], indices in the data set, pack by pack."""
    ends: NDArray[np.int64]
    """[P], where each pack ends in `samples`."""

    def __len__(self) -> int:
        return len(self.ends)

    def members(self, pack: int) -> list[int]:
        """Returns the indices of the samples in a pack, the longest first."""
        first = int(self.ends[pack - 1]) if pack else 0
        members: list[int] = self.samples[first : int(self.ends[pack])].tolist()
        return members

    @property
    def most_members(self) -> int:
        """Samples of the pack that has the most."""
        return int(np.diff(self.ends, prepend=0).max(initial=0))

    def fill(self, lengths: NDArray[np.integer], capacity: int) -> float:
        """Returns the share of all positions that samples of these lengths take."""
        return float(lengths[self.samples].sum() / (len(self) * capacity))


def plan_packs(
    order: NDArray[np.int64], lengths: NDArray[np.integer], capacity: int, window: int = WINDOW
) -> PackingPlan:
    """Returns the packs of some samples.

    Args:
        order: [N], indices of the samples; which of the samples of one length go where follows it.
        lengths: [all], positions of each sample by index, 1 to `capacity`.
        capacity: positions of a pack.
        window: samples of the order that are packed together. A window's packs come in the order of their longest
            samples: in a file's order it keeps that of the file, within a window.
    """
    members, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    before = 0
    for part in (order[first : first + window] for first in range(0, len(order), window)):
        by_pack, sizes = _best_fit(lengths[part], capacity)
        members.append(part[by_pack])
        ends.append(before + np.cumsum(sizes))
        before += len(part)
    return PackingPlan(np.concatenate(members), np.concatenate(ends))


def _best_fit(lengths: NDArray[np.integer], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the samples of one window pack by pack, and how many are in each pack."""
    assert len(lengths) == 0 or 0 < lengths.min() <= lengths.max() <= capacity
    longest_first = np.argsort(-lengths.astype(np.int64), kind="stable")
    pack_of = np.empty(len(lengths), np.int64)
    placed = 0
    for packs in _places(lengths[longest_first], capacity):
        pack_of[longest_first[placed : placed + len(packs)]] = packs
        placed += len(packs)
    # A pack is named by the sample that opened it, its longest: its place in the order becomes the pack's.
    opener = np.full(int(pack_of.max(initial=-1)) + 1, -1, np.int64)
    opener[pack_of[longest_first[::-1]]] = longest_first[::-1]
    place = np.empty(len(opener), np.int64)
    place[np.argsort(opener, kind="stable")] = np.arange(len(opener))
    by_pack = longest_first[np.argsort(place[pack_of[longest_first]], kind="stable")]
    return by_pack, np.bincount(place[pack_of], minlength=len(opener))


def _places(descending: NDArray[np.integer], capacity: int) -> Iterator[NDArray[np.int64]]:
    """Yields the packs of the samples, the longest first, some at a time."""
    room = _Room(capacity)
    values, counts = np.unique(-descending.astype(np.int64), return_counts=True)
    for length, count in zip((-values).tolist(), counts.tolist(), strict=True):
        while count:
            packs = room.take(length, count)
            yield packs
            count -= len(packs)


class _Room:
    """Packs by the room that is left in them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_packs = 0
        self.packs: dict[int, NDArray[np.int64]] = {}
        self.rooms = 0
        """A bit for each room that some pack has left: the least that suffices is the lowest bit from there on."""

    def take(self, length: int, count: int) -> NDArray[np.int64]:
        """Returns the packs, one for each sample, that up to `count` samples of one length go to."""
        fitting = self.rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            packs = self.packs.pop(room)
            self.rooms &= ~(1 << room)
        else:
            room, needed = self.capacity, -(-count // (self.capacity // length))
            packs = np.arange(self.num_packs, self.num_packs + needed)
            self.num_packs += needed
        each = room // length
        full, rest = divmod(min(count, len(packs) * each), each)
        self._put(packs[:full], room - each * length)
        self._put(packs[full : full + 1] if rest else packs[:0], room - rest * length)
        self._put(packs[full + (rest > 0) :], room)
        return np.concatenate([np.repeat(packs[:full], each), np.repeat(packs[full : full + 1], rest)])

    def _put(self, packs: NDArray[np.int64], room: int) -> None:
        if not len(packs) or not room:
            return
        others = self.packs.get(room)
        self.packs[room] = packs if others is None else np.concatenate([others, packs])
        self.rooms |= 1 << room
