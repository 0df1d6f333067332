"""What a sampler is: a pure function of all that an epoch's order may depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from neva.data.lengths import SampleLengths


@dataclass(frozen=True)
class Epoch:
    """One pass over the data, as a sampler sees it; equal on all ranks and in every run of the same data."""

    number: int
    """From 0."""
    seed: int
    """Of the run."""
    num_samples: int
    """N, length of the data set."""
    global_batch_size: int
    """Samples an optimizer step, as it was when the epoch began: groups are whole numbers of global batches."""
    mega_batch_mult: int | None
    """Global batches in a group; None: see `group_size`."""
    longest_first: bool
    """Whether the longest sample is to come first, so that memory that does not suffice fails in the first step."""
    lengths: Callable[[], SampleLengths]
    """Reads all records when it is first asked."""

    def generator(self) -> Generator:
        """Returns random numbers of its own for each epoch of each seed."""
        import torch

        # Hashed, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
        digest = hashlib.sha256(f"{self.seed}:{self.number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))

    @property
    def group_size(self) -> int:
        """Samples in a group: `mega_batch_mult` global batches; None: a quarter of the data, of 1 to 50 of them.

        NeVA's rule, which is that of xtuner's `LengthGroupedSampler`.
        """
        multiple = self.mega_batch_mult
        if multiple is None:
            multiple = max(1, min(50, self.num_samples // (4 * self.global_batch_size)))
        return multiple * self.global_batch_size


@dataclass(frozen=True)
class EpochOrder:
    """One way to go through the data; register it in `neva.registry.SAMPLERS`."""

    indices: Callable[[Epoch], Tensor]
    """Returns all dataset indices in the order of the epoch, int64 [N]."""
    is_grouped: bool = False
    """Whether it reads `mega_batch_mult` and `longest_first`: a run cannot resume with others."""
    is_single_pass: bool = False
    """Whether there is but one epoch."""
