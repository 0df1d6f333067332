"""Orders that do not look into the records: a permutation, and the file's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neva.data.samplers.epoch import Epoch, EpochOrder
from neva.registry import SAMPLERS

if TYPE_CHECKING:
    from torch import Tensor


def shuffled(epoch: Epoch) -> Tensor:
    """Returns a permutation of its own for each epoch of each seed."""
    import torch

    return torch.randperm(epoch.num_samples, generator=epoch.generator())


def in_file_order(epoch: Epoch) -> Tensor:
    """Returns the order of the file, in every epoch."""
    import torch

    return torch.arange(epoch.num_samples)


SAMPLERS.register("cyclic", EpochOrder(shuffled))
SAMPLERS.register("single", EpochOrder(in_file_order, is_single_pass=True))
SAMPLERS.register("sequential", EpochOrder(in_file_order))
