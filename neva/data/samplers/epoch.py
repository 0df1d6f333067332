"""What a sampler is: a pure function of all that an epoch's order may depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator

    from neva.data.lengths import SampleLengths
    from neva.data.samplers.permutation import Order


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

    @property
    def key(self) -> str:
        """What no other epoch of any seed has."""
        return f"{self.seed}:{self.number}"

    def generator(self) -> Generator:
        """Returns random numbers of its own for each epoch of each seed."""
        import torch

        # Hashed, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
        digest = hashlib.sha256(self.key.encode()).digest()
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


def no_identity(num_samples: int) -> dict[str, str]:
    """Returns nothing: the order's name says all."""
    return {}


@dataclass(frozen=True)
class EpochOrder:
    """One way to go through the data; register it in `neva.registry.SAMPLERS`."""

    indices: Callable[[Epoch], Order]
    """Returns all dataset indices in the order of the epoch: an int64 tensor [N], or what can be sliced like one."""
    is_grouped: bool = False
    """Whether it reads `mega_batch_mult` and `longest_first`: a run cannot resume with others."""
    is_single_pass: bool = False
    """Whether there is but one epoch."""
    identity: Callable[[int], dict[str, str]] = no_identity
    """What a checkpoint holds of the order of so many samples beside its name: a run cannot resume with another."""
