"""The order of the data: a pure function of seed and epoch, entered at any number of consumed samples."""

import hashlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch.utils.data import Sampler

SHUFFLES = {"cyclic": True, "single": False, "sequential": False}
"""`model.data.dataloader_type`: whether each epoch has an order of its own. NeVA names file order twice."""


class GlobalBatchSampler(Sampler[list[int]]):
    """Yields, for each optimizer step, the dataset indices that one data-parallel rank consumes in it.

    A global batch is `global_batch_size` consecutive indices of the epoch's order; rank r of `size` takes
    every size-th from the r-th on, so the union over the ranks is the global batch. What is left at an
    epoch's end and does not fill a global batch is left out of that epoch. Iteration starts behind
    `consumed_samples` and ends after step `max_steps` of the whole run, across as many epochs as that takes.
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
        dataloader_type: Literal["cyclic", "single", "sequential"],
    ) -> None:
        if dataloader_type not in SHUFFLES:
            raise ValueError(
                f"model.data.dataloader_type is {dataloader_type!r}, expected one of {', '.join(SHUFFLES)}"
            )
        if num_samples < global_batch_size:
            raise ValueError(
                f"{num_samples} records do not fill one global batch; model.global_batch_size must be at most "
                f"{num_samples}, found {global_batch_size}"
            )
        if global_batch_size % size:
            raise ValueError(
                f"model.global_batch_size={global_batch_size} cannot be divided by {size} data-parallel ranks"
            )
        if consumed_samples % global_batch_size:
            raise ValueError(
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
        self.shuffle = SHUFFLES[dataloader_type]

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
                current_epoch, order = epoch, epoch_order(self.num_samples, self.seed, epoch, self.shuffle)
            batch = order[position * self.global_batch_size : (position + 1) * self.global_batch_size]
            yield batch[self.rank :: self.size].tolist()


def epoch_order(num_samples: int, seed: int, epoch: int, shuffle: bool) -> torch.Tensor:
    """All dataset indices in the order of an epoch, int64 `[num_samples]`."""
    if not shuffle:
        return torch.arange(num_samples)
    # Hashed, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
    digest = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randperm(num_samples, generator=generator)
