"""Which samples each rank consumes in each step, from any position in the data on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.data import Sampler

from neva.config.derive import require_global_batch
from neva.data.position import Position
from neva.data.samplers.epoch import Epoch, EpochOrder
from neva.data.samplers.permutation import FileOrder, Order
from neva.errors import ConfigError
from neva.registry import SAMPLERS


class GlobalBatchSampler(Sampler[list[int]]):
    """Yields, for each optimizer step, the dataset indices that one data-parallel rank consumes in it.

    A global batch is `global_batch_size` consecutive indices of the epoch's order; rank r of `size` takes every
    size-th from the r-th on, so the union over the ranks is the global batch. What is left at an epoch's end and does
    not fill a global batch is left out of that epoch, or, without `drop_last`, filled up from the next. Iteration
    starts at a position and takes `num_steps` global batches, across as many epochs as that takes. An epoch keeps the
    order with which it began, whatever the batch size is later.

    Args:
        first: the first epoch; the others differ in number and, after a resume, in batch size.
        rank: among the data-parallel ranks.
        size: number of data-parallel ranks.
        start: where the run stands in the data.
        num_steps: optimizer steps from there on.
        dataloader_type: name of the order, one of the registered samplers.
        drop_last: whether an epoch is whole global batches.

    Raises:
        ConfigError: an unknown order, numbers that do not divide, or more steps than an order of one pass has.
    """

    def __init__(
        self,
        first: Epoch,
        rank: int,
        size: int,
        start: Position,
        num_steps: int,
        dataloader_type: str,
        drop_last: bool = True,
    ) -> None:
        require_global_batch(first.num_samples, first.global_batch_size)
        if first.global_batch_size % size:
            raise ConfigError(
                f"model.global_batch_size={first.global_batch_size} cannot be divided by {size} data-parallel ranks"
            )
        self.first = first
        self.num_samples, self.global_batch_size = first.num_samples, first.global_batch_size
        self.rank = rank
        self.size = size
        self.drop_last = drop_last
        self.start = start
        self.num_steps = max(0, num_steps)
        self.order: EpochOrder = SAMPLERS[dataloader_type]
        left = (self.num_samples - start.offset) // self.global_batch_size if start.epoch == 0 else 0
        require_passes(dataloader_type, self.num_samples, left, num_steps)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return self.num_samples // self.global_batch_size

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        position, number = self.start, -1
        order: Order = FileOrder(0)
        for _ in range(self.num_steps):
            begin = self.begin(position)
            position = self.behind(position)
            if begin.epoch != number:
                number, order = begin.epoch, self._order(begin)
            batch = order[begin.offset : begin.offset + self.global_batch_size]
            if position.epoch != number:  # the rest is of the next epoch
                number, order = position.epoch, self._order(position)
                batch = torch.cat([batch, order[: position.offset]])
            yield batch[self.rank :: self.size].tolist()

    def _order(self, begin: Position) -> Order:
        """Returns the order of the epoch that a global batch begins in."""
        assert begin.batch_size is not None
        return self.order.indices(replace(self.first, number=begin.epoch, global_batch_size=begin.batch_size))

    def begin(self, position: Position) -> Position:
        """Returns where the next step begins."""
        return position.batch(self.num_samples, self.global_batch_size, self.drop_last)

    def behind(self, position: Position) -> Position:
        """Returns the position behind the next step."""
        return position.behind(self.num_samples, self.global_batch_size, self.drop_last)


def require_passes(dataloader_type: str, num_samples: int, steps_left: int, num_steps: int) -> None:
    """Raises ConfigError when an order of one pass has fewer steps left than a run wants to take."""
    if SAMPLERS[dataloader_type].is_single_pass and num_steps > steps_left:
        raise ConfigError(
            f"model.data.dataloader_type={dataloader_type} goes through the {num_samples} records once, which leaves "
            f"{steps_left} steps of {num_steps}; lower trainer.max_steps, or use sequential"
        )
