"""Where the tensors of a rank lie in those of the whole model: noted before FSDP cuts them, asked for checkpoints.

Tensor parallel gives a rank some columns of a matrix, some rows, or in a gated MLP some rows of either half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """Rows of a tensor, from number `first` on, that lie together in the whole one: there as `whole` says."""

    first: int
    whole: ShardedTensor


def note_places(model: Any) -> None:
    """Has each tensor of a Megatron model know its places."""
    tensors = model.state_dict(keep_vars=True)
    for name, stored in model.sharded_state_dict().items():
        if isinstance(stored, ShardedTensor | ShardedTensorFactory):
            tensors[name].places = _places(stored)


def keep_attributes(model: nn.Module, noted: dict[str, dict[str, Any]]) -> None:
    """Gives parameters what others of the same names had: Megatron's marks for a rank's shares, and their places."""
    for name, parameter in model.named_parameters():
        parameter.__dict__.update(noted[name])


def stored_rows(tensor: Tensor, rows: Tensor, first: int, prefix: str, copy: int) -> Iterator[ShardedTensor]:
    """Yields the sharded form of some rows of a tensor, from number `first` on; copy 0 of them is the one that counts.

    Args:
        tensor: that knows its places.
        rows: of it, or of what lies beside it in the same shape, as the optimizer's state does.
        first: their first one's number in the tensor.
        prefix: of the name in a checkpoint.
        copy: number of the rank among those that have the same rows of the tensor.
    """
    places: list[Place] = tensor.places  # type: ignore[attr-defined]
    for place in places:
        begin = max(first, place.first)
        part = rows[begin - first : max(0, place.first + place.whole.local_shape[0] - first)]
        if len(part):
            above, *others = place.whole.global_offset
            yield replace(
                place.whole,
                key=prefix + place.whole.key,
                data=part,
                dtype=part.dtype,
                local_shape=tuple(part.shape),
                global_offset=(above + begin - place.first, *others),
                axis_fragmentations=None,  # shards of uneven size
                replica_id=(*place.whole.replica_id[:-1], copy),
            )


def _places(stored: ShardedTensor | ShardedTensorFactory) -> list[Place]:
    pieces = stored.build() if isinstance(stored, ShardedTensorFactory) else [stored]
    firsts = accumulate((piece.local_shape[0] for piece in pieces), initial=0)
    return [Place(first, piece.without_data()) for first, piece in zip(firsts, pieces, strict=False)]
