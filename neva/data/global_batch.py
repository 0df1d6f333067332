"""Which samples each rank consumes in each step, from any number of consumed samples on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from neva.errors import ConfigError
from neva.registry import SAMPLERS


class GlobalBatchSampler(Sampler[list[int]]):
    """Yields, for each optimizer step, the dataset indices that one data-parallel rank consumes in it.

    A global batch is `global_batch_size` consecutive indices of the epoch's order; rank r of `size` takes every
    size-th from the r-th on, so the union over the ranks is the global batch. What is left at an epoch's end and does
    not fill a global batch is left out of that epoch. Iteration starts behind `consumed_samples` and ends after step
    `max_steps` of the whole run, across as many epochs as that takes.

    Args:
        num_samples: length of the dataset.
        global_batch_size: samples an optimizer step, on all ranks.
        rank: among the data-parallel ranks.
        size: number of data-parallel ranks.
        consumed_samples: how many the run has seen before.
        max_steps: optimizer steps of the whole run.
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
        consumed_samples: int,
        max_steps: int,
        seed: int,
        dataloader_type: str,
    ) -> None:
        if dataloader_type not in SAMPLERS:
            raise ConfigError(
                f"model.data.dataloader_type is {dataloader_type!r}, expected one of {', '.join(SAMPLERS.names())}"
            )
        if num_samples < global_batch_size:
            raise ConfigError(
                f"{num_samples} records do not fill one global batch; model.global_batch_size must be at most "
                f"{num_samples}, found {global_batch_size}"
            )
        if global_batch_size % size:
            raise ConfigError(
                f"model.global_batch_size={global_batch_size} cannot be divided by {size} data-parallel ranks"
            )
        if consumed_samples % global_batch_size:
            raise ConfigError(
                f"{consumed_samples} consumed samples are not a whole number of global batches of "
                f"{global_batch_size}; resume with the model.global_batch_size that the run had"
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.size = size
        self.first_step = consumed_samples // global_batch_size
        self.max_steps = max_steps
        self.seed = seed
        self.order_of = SAMPLERS[dataloader_type]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return self.num_samples // self.global_batch_size

    def __len__(self) -> int:
        return max(0, self.max_steps - self.first_step)

    def __iter__(self) -> Iterator[list[int]]:
        current_epoch, order = -1, torch.empty(0)
        for step in range(self.first_step, self.max_steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != current_epoch:
                current_epoch, order = epoch, self.order_of(self.num_samples, self.seed, epoch)
            batch = order[position * self.global_batch_size : (position + 1) * self.global_batch_size]
            yield batch[self.rank :: self.size].tolist()
