"""Several samples in one row of a batch: which keys each query sees, and at which position it stands.

Dimensions: S positions of a whole row, s of this rank's shard of it, B rows, T queries of all rows one after another,
N those of them that the last layer is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.distributed import ProcessGroup

from neva.model.balance import TokenGroups
from neva.model.context import chunk_ends, positions
from neva.model.seen_together import SeenTogether

ROWS = "sbhd"
"""Megatron's name of the form in which rows stay rows; its `thd` would take one row alone."""


class Span(NamedTuple):
    """Queries of one sample in one row, and the keys that the last of them sees; those before see one less each."""

    row: int
    first: int
    """In this rank's shard of the row."""
    end: int
    first_key: int
    """In the whole row."""
    end_key: int


@dataclass
class Rows(PackedSeqParams):
    """What layers are told of a micro batch, as Megatron hands it through them (recomputation too)."""

    qkv_format: str = ROWS
    groups: TokenGroups | None = None
    """Which tokens experts are balanced for; None: they are not."""
    together: SeenTogether | None = None
    """Which positions see which, where those of an image see each other; None: what is before them."""
    first_read: int = 0
    """Position before which nobody reads what the last layer gives: there it makes keys and values alone."""


@dataclass
class LastRead:
    """What the last layer is asked for: of each sample the queries from its first label on, one at least."""

    spans: list[Span]
    query_index_N: Tensor
    """int64: those queries, span by span, counted over T."""
    query_ends: Tensor
    """int32 [spans + 1]: where the queries of each span end, counted over N."""
    hidden_index_N: Tensor
    """int64: the same in hidden states [S, B], in their order there, counted over S * B."""
    order_N: Tensor
    """int64: where each of those stands among the queries span by span."""


@dataclass
class PackedSamples(Rows):
    """How the rows of a micro batch are divided."""

    longest: int = 0
    """Positions of the longest sample of all rows."""
    spans: list[Span] = field(default_factory=list)
    """All queries of row 0 in their order, then those of row 1, …"""
    positions_sB: Tensor = field(default_factory=lambda: torch.empty(0))
    """int64: of each query within its sample."""
    query_ends: Tensor = field(default_factory=lambda: torch.empty(0))
    """int32 [spans + 1]: where the queries of each span end, counted over T."""
    key_ends: Tensor = field(default_factory=lambda: torch.empty(0))
    """int32 [spans + 1]: the same for the keys, when each span has its own."""
    key_index: Tensor | None = None
    """int64: those keys, counted over B * S; None: they are all keys in their order."""
    last_read: LastRead | None = None
    """None: the last layer is asked for all."""


def packed_samples(
    lengths: Sequence[Sequence[int]],
    length: int,
    group: ProcessGroup,
    device: torch.device,
    groups: TokenGroups | None = None,
    together: SeenTogether | None = None,
    unread: Sequence[Sequence[int]] = (),
) -> PackedSamples:
    """Returns how rows are divided.

    Args:
        lengths: of the samples in each row, in their order; the rest of a row is padding.
        length: S.
        group: of the ranks that share each row (context parallel).
        device: of the tensors.
        groups, together: see `Rows`.
        unread: of the samples in each row, the positions before which nobody reads what the last layer gives; none:
            all are read. Only where a rank has whole rows.
    """
    shard = positions(length, group, torch.device("cpu"))
    chunk = length if shard is None else length // (2 * group.size())
    ends = (length,) if shard is None else chunk_ends(length, group)
    spans, within = [], []
    longest = max(chain([1], *lengths))
    for row, of_row in enumerate(lengths):
        padding = length - sum(of_row)
        samples = [*of_row, padding] if padding else [*of_row]
        spans += [
            span
            for number, end in enumerate(ends)
            for span in _spans(row, number * chunk, end - chunk, end, samples)
        ]
        within.append(torch.cat([torch.arange(sample) % longest for sample in samples]))
    positions_SB = torch.stack(within, dim=1)
    key_index = [torch.arange(span.first_key, span.end_key) + span.row * length for span in spans]
    return PackedSamples(
        longest=longest,
        groups=groups,
        together=together,
        spans=spans,
        positions_sB=(positions_SB if shard is None else positions_SB[shard]).to(device, non_blocking=True),
        query_ends=_ends([span.end - span.first for span in spans], device),
        key_ends=_ends([span.end_key - span.first_key for span in spans], device),
        key_index=None if shard is None else torch.cat(key_index).to(device, non_blocking=True),
        last_read=_last_read(spans, unread, length, device) if unread else None,
    )


def _last_read(
    spans: Sequence[Span], unread: Sequence[Sequence[int]], length: int, device: torch.device
) -> LastRead:
    """Returns what is read of spans that are whole samples, and padding behind the last of a row."""
    rows = [[span for span in spans if span.row == row] for row in range(len(unread))]
    read = [
        span._replace(first=min(span.first + skipped, span.end - 1))
        for of_row, skips in zip(rows, unread, strict=True)
        for span, skipped in zip(of_row, [*skips, length], strict=False)  # padding, if any, is last
    ]
    row_N = torch.cat([torch.full((span.end - span.first,), span.row) for span in read])
    position_N = torch.cat([torch.arange(span.first, span.end) for span in read])
    hidden_index_N, order_N = torch.sort(position_N * len(unread) + row_N)
    query_index_N, hidden_index_N, order_N = (
        index_N.to(device, non_blocking=True)
        for index_N in (row_N * length + position_N, hidden_index_N, order_N)
    )
    query_ends = _ends([span.end - span.first for span in read], device)
    return LastRead(read, query_index_N, query_ends, hidden_index_N, order_N)


def _spans(row: int, place: int, begin: int, end: int, samples: Sequence[int]) -> list[Span]:
    """Returns the spans of the chunk [begin, end) of a row, which lies at `place` in the shard."""
    found = []
    for first, behind in pairwise(accumulate(samples, initial=0)):
        start, stop = max(first, begin), min(behind, end)
        if start < stop:
            found.append(Span(row, place + start - begin, place + stop - begin, first, stop))
    return found


def _ends(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32).to(device, non_blocking=True)
