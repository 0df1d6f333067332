"""Orders that do not look into the records: a permutation, and the file's."""

from __future__ import annotations

from neva.data.samplers.epoch import Epoch, EpochOrder
from neva.data.samplers.permutation import FileOrder, KeyedPermutation, Order
from neva.registry import SAMPLERS

STORED_SAMPLES = 2**22
"""Up to so many, the order is a random permutation in memory (32 MiB); of more, one that is computed piece by piece."""


def shuffled(epoch: Epoch) -> Order:
    """Returns a permutation of its own for each epoch of each seed."""
    import torch

    if epoch.num_samples > STORED_SAMPLES:
        return KeyedPermutation(epoch.num_samples, epoch.key)
    return torch.randperm(epoch.num_samples, generator=epoch.generator())


def in_file_order(epoch: Epoch) -> Order:
    """Returns the order of the file, in every epoch."""
    return FileOrder(epoch.num_samples)


def permutation_identity(num_samples: int) -> dict[str, str]:
    """Returns what a checkpoint holds of how so many samples are permuted, where that is not by a stored order."""
    return {"permutation": "keyed"} if num_samples > STORED_SAMPLES else {}


SAMPLERS.register("cyclic", EpochOrder(shuffled, identity=permutation_identity))
SAMPLERS.register("single", EpochOrder(in_file_order, is_single_pass=True))
SAMPLERS.register("sequential", EpochOrder(in_file_order))
