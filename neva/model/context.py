"""How a sequence is sharded over context-parallel ranks: Megatron's zigzag, which balances causal attention.

A sequence is split into 2C equal chunks for C ranks; rank r holds the chunks r and 2C-1-r.
Dimensions: S whole sequence, s a rank's shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor
from torch.distributed import ProcessGroup


def positions(length: int, group: ProcessGroup, device: torch.device) -> Tensor | None:
    """Returns the positions [s] of this rank's shard of a sequence, in its order; None where it is all of it.

    Raises:
        ValueError: when the length cannot be cut into 2C chunks.
    """
    size, rank = group.size(), group.rank()
    if size == 1:
        return None
    if length % (2 * size):
        raise ValueError(
            f"a sequence of {length} positions cannot be cut into 2 x context parallel {size} = {2 * size} chunks; "
            "set model.data.pad_to_multiple_of to a multiple of that"
        )
    chunks = torch.arange(length, device=device).chunk(2 * size)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def sample_numbers(lengths: Sequence[Sequence[int]], length: int) -> Tensor:
    """Returns the number [B, S] of the sample that each position belongs to, counted over all rows.

    Args:
        lengths: of the samples in each row, in their order.
        length: S; what is left of a row is padding, of the number behind the last.
    """
    total = sum(map(len, lengths))
    numbers_BS = torch.full((len(lengths), length), total)
    first = 0
    for row, of_row in enumerate(lengths):
        of_tokens = torch.arange(first, first + len(of_row)).repeat_interleave(torch.tensor(of_row))
        numbers_BS[row, : len(of_tokens)] = of_tokens
        first += len(of_row)
    return numbers_BS


def gather_sequence(shard: Tensor, group: ProcessGroup) -> Tensor:
    """Returns the whole sequence [S, ...] in reading order from the ranks' shards [s, ...].

    Gradients of a position are summed over the ranks that used it and go to the rank that holds it.
    """
    gathered = gather_from_sequence_parallel_region(shard, tensor_parallel_output_grad=True, group=group)
    size = group.size()
    chunks = gathered.chunk(2 * size)  # of rank 0: 0 and 2C-1, of rank 1: 1 and 2C-2, …
    return torch.cat([*chunks[0::2], *reversed(chunks[1::2])])


def chunk_ends(length: int, group: ProcessGroup) -> tuple[int, int]:
    """Returns where, in the whole sequence, the two chunks of this rank end."""
    size, rank = group.size(), group.rank()
    chunk = length // (2 * size)
    return (rank + 1) * chunk, (2 * size - rank) * chunk
