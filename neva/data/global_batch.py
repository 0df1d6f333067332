"""Which samples each rank consumes in each step, from any position in the data on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from neva.config.derive import require_global_batch
from neva.data.position import Position
from neva.errors import ConfigError
from neva.registry import SAMPLERS


class GlobalBatchSampler(Sampler[list[int]]):
    """Yields, for each optimizer step, the dataset indices that one data-parallel rank consumes in it.

    A global batch is `global_batch_size` consecutive indices of the epoch's order; rank r of `size` takes every
    size-th from the r-th on, so the union over the ranks is the global batch. What is left at an epoch's end and does
    not fill a global batch is left out of that epoch. Iteration starts at a position and takes `num_steps` global
    batches, across as many epochs as that takes.

    Args:
        num_samples: length of the dataset.
        global_batch_size: samples an optimizer step, on all ranks.
        rank: among the data-parallel ranks.
        size: number of data-parallel ranks.
        start: where the run stands in the data.
        num_steps: optimizer steps from there on.
        seed: of the order.
        dataloader_type: name of the order, one of the registered samplers.

    Raises:
        ConfigError: an unknown order, or numbers that do not divide.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        rank: int,
        size: int,
        start: Position,
        num_steps: int,
        seed: int,
        dataloader_type: str,
    ) -> None:
        if dataloader_type not in SAMPLERS:
            raise ConfigError(
                f"model.data.dataloader_type is {dataloader_type!r}, expected one of {', '.join(SAMPLERS.names())}"
            )
        require_global_batch(num_samples, global_batch_size)
        if global_batch_size % size:
            raise ConfigError(
                f"model.global_batch_size={global_batch_size} cannot be divided by {size} data-parallel ranks"
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.size = size
        self.start = start
        self.num_steps = max(0, num_steps)
        self.seed = seed
        self.order_of = SAMPLERS[dataloader_type]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return self.num_samples // self.global_batch_size

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        position, epoch, order = self.start, -1, torch.empty(0)
        for _ in range(self.num_steps):
            begin = position.batch(self.num_samples, self.global_batch_size)
            if begin.epoch != epoch:
                epoch, order = begin.epoch, self.order_of(self.num_samples, self.seed, begin.epoch)
            batch = order[begin.offset : begin.offset + self.global_batch_size]
            position = self.behind(position)
            yield batch[self.rank :: self.size].tolist()

    def behind(self, position: Position) -> Position:
        """Returns the position behind the next step."""
        return position.behind(self.num_samples, self.global_batch_size)
