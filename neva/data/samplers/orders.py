"""Orders of the data: pure functions of seed and epoch that give all dataset indices, int64 [num_samples]."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from neva.registry import SAMPLERS

if TYPE_CHECKING:
    from torch import Tensor


def shuffled(num_samples: int, seed: int, epoch: int) -> Tensor:
    """Returns an order of its own for each epoch of each seed."""
    import torch

    # Hashed, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
    digest = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randperm(num_samples, generator=generator)


def in_file_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """Returns the order of the file, in every epoch."""
    import torch

    return torch.arange(num_samples)


SAMPLERS.register("cyclic", shuffled)
# NeVA names file order twice.
SAMPLERS.register("single", in_file_order)
SAMPLERS.register("sequential", in_file_order)
