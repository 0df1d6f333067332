"""Bytes of parameters, gradients and optimizer state on one rank: counted, not estimated.

The rules are those of the objects that training builds: Megatron's `DistributedDataParallel` holds a float32 gradient
for every trained parameter, its mixed-precision optimizer a float32 copy of it, Adam two float32 moments and a
float32 step counter a tensor. The distributed optimizer lays parameters into one padded buffer and cuts that into
equal shards. FSDP keeps float32 pieces of what trains and gradients of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from neva.planner.tensors import LANGUAGE, PROJECTOR, TOWER, Weight

PRECISION_BYTES = {"32": 4, "bf16": 2, "16": 2}
FLOAT32 = 4
MOMENTS = 2 * FLOAT32
STEP = FLOAT32
PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128
"""Elements: Megatron starts each parameter and each bucket of a sharded buffer at a multiple of these."""

SHARDINGS = ("none", "optimizer", "fsdp_grad", "fsdp_hybrid", "fsdp_full")
"""What data parallel ranks share out, least communication first: nothing; optimizer state; with FSDP gradients and
optimizer state, parameters as well within a node, parameters as well over all ranks."""


@dataclass(frozen=True)
class State:
    """Bytes that stay for the whole run on the fullest rank of a stage."""

    parameters: int
    gradients: int
    optimizer: int
    parameters_by_part: dict[str, int]

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.optimizer


def state(weights: Sequence[Weight], precision: str, sharding: str, ranks: int, node_ranks: int) -> State:
    """Counts the state of one rank.

    Args:
        weights: what the rank's stage holds.
        precision: `32`, `bf16` or `16`.
        sharding: one of `SHARDINGS`.
        ranks: data (times context) parallel ranks that may share it out.
        node_ranks: those of them on one node.
    """
    if sharding.startswith("fsdp"):
        return _fsdp(weights, precision, sharding, ranks, node_ranks)
    width = PRECISION_BYTES[precision]
    trained = [weight for weight in weights if weight.is_trained]
    main = 0 if precision == "32" else FLOAT32
    parts = {
        part: width * sum(weight.numel for weight in weights if weight.part == part)
        for part in (TOWER, PROJECTOR, LANGUAGE)
    }
    numel = sum(weight.numel for weight in trained)
    if sharding == "none":
        optimizer = numel * (main + MOMENTS) + STEP * len(trained)
        return State(sum(parts.values()), numel * FLOAT32, optimizer, parts)
    buffer, shards = sharded_buffer(trained, ranks)
    parameters = sum(parts.values()) + width * (buffer - numel)
    optimizer = max(count * (main + MOMENTS) + STEP * tensors for count, tensors in shards)
    return State(parameters, buffer * FLOAT32, optimizer, parts)


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


def _fsdp(weights: Sequence[Weight], precision: str, sharding: str, ranks: int, node_ranks: int) -> State:
    """Each parameter is cut along its first dimension, every rank's piece as large as the first's (`fully_shard`).

    A trained piece is float32, its own main weight. Under `grad` the pieces of all ranks, joined in the precision of
    the model, lie beside it from the first forward to the last backward pass of a step.
    """
    ways = node_ranks if sharding == "fsdp_hybrid" else ranks
    width = PRECISION_BYTES[precision]
    joined = ways * width if sharding == "fsdp_grad" else 0
    parts = dict.fromkeys((TOWER, PROJECTOR, LANGUAGE), 0)
    for weight in weights:
        kept = FLOAT32 if weight.is_trained else width
        parts[weight.part] += (kept + joined) * _piece(weight, ways)
    trained = [weight for weight in weights if weight.is_trained]
    numel = sum(_piece(weight, ways) for weight in trained)
    return State(sum(parts.values()), numel * FLOAT32, numel * MOMENTS + STEP * len(trained), parts)


def _piece(weight: Weight, ways: int) -> int:
    return -(-weight.shape[0] // ways) * (weight.numel // weight.shape[0])
