"""Collectives over pieces of uneven length, which NCCL has and gloo has not: padded to the longest, then cut.

They gather the tokens of a rank's experts from the tensor-parallel ranks, and sum what the experts made of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.tensor_parallel import mappings
from torch import Tensor
from torch.distributed import ProcessGroup

_gather, _reduce_scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim


def gather(
    piece: Tensor,
    group: ProcessGroup,
    output_split_sizes: Sequence[int] | None = None,
    use_global_buffer: bool = False,
) -> Tensor:
    """Returns the pieces [n, ...] of all ranks, one behind the other; `output_split_sizes` are their lengths."""
    if output_split_sizes is None:
        return _gather(piece, group, use_global_buffer=use_global_buffer)
    longest = max(output_split_sizes)
    gathered = _gather(_padded(piece, longest), group).split(longest)
    return torch.cat([whole[:size] for whole, size in zip(gathered, output_split_sizes, strict=True)])


def reduce_scatter(
    pieces: Tensor,
    group: ProcessGroup,
    input_split_sizes: Sequence[int] | None = None,
    use_global_buffer: bool = False,
) -> Tensor:
    """Returns the sum over the ranks of this one's piece; `input_split_sizes` are the lengths of all ranks' pieces."""
    if input_split_sizes is None:
        return _reduce_scatter(pieces, group, use_global_buffer=use_global_buffer)
    longest = max(input_split_sizes)
    padded = torch.cat([_padded(piece, longest) for piece in pieces.split(list(input_split_sizes))])
    return _reduce_scatter(padded, group)[: input_split_sizes[group.rank()]]


def _padded(piece: Tensor, length: int) -> Tensor:
    return torch.cat([piece, piece.new_zeros((length - len(piece), *piece.shape[1:]))])
