"""The padded buffer of Megatron's distributed optimizer, and what of it each rank's shard touches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from neva.planner.tensors import Weight

PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128
"""Elements: Megatron starts each parameter and each bucket of a sharded buffer at a multiple of these."""


def sharded_buffer(trained: Sequence[Weight], ranks: int) -> tuple[int, list[tuple[int, int]]]:
    """Lays parameters out as Megatron's distributed optimizer does, last parameter first, padded, in buckets.

    Returns:
        The buffer's elements, and for each rank the parameter elements and the parameters that its shard touches.
    """
    buckets: list[tuple[int, int, list[tuple[int, int]]]] = []
    spans: list[tuple[int, int]] = []
    bucket_start = end = 0

    def close(stop: int) -> int:
        multiple = math.lcm(ranks, BUCKET_ALIGNMENT)
        padded = -(-stop // multiple) * multiple
        buckets.append((bucket_start, padded, list(spans)))
        spans.clear()
        return padded

    for weight in reversed(trained):
        start = -(-end // PARAMETER_ALIGNMENT) * PARAMETER_ALIGNMENT
        if weight.is_shared and spans:  # a tied embedding has a bucket of its own
            start = bucket_start = close(start)
        end = start + weight.numel
        spans.append((start, end))
        if weight.is_shared:
            end = bucket_start = close(end)
    if spans:
        end = close(end)
    shards = [(0, 0)] * ranks
    for first, stop, members in buckets:
        size = (stop - first) // ranks
        for rank in range(ranks):
            low = first + rank * size
            overlaps = [min(b, low + size) - max(a, low) for a, b in members]
            taken = [overlap for overlap in overlaps if overlap > 0]
            shards[rank] = (shards[rank][0] + sum(taken), shards[rank][1] + len(taken))
    return end, shards
