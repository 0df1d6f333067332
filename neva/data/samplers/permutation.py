"""Orders that are computed where they are asked: nothing is stored, however many samples there are."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

ROUNDS = 6
"""Of the Feistel network; four make a good permutation when the rounds' functions are (Luby and Rackoff, 1988)."""


class Order(Protocol):
    """N dataset indices in an order; a tensor is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Tensor:
        """Returns some of them that follow each other, int64."""


class FileOrder:
    """0 to N - 1."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, part: slice) -> Tensor:
        import torch

        return torch.arange(*part.indices(self.num_samples))


class KeyedPermutation:
    """A permutation of 0 to N - 1 that a key decides.

    A Feistel network permutes the least power of two that is not below N; a value that falls outside is permuted
    again until it is inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), which is less than
    twice on average.
    """

    def __init__(self, num_samples: int, key: str) -> None:
        self.num_samples = num_samples
        bits = max(2, (num_samples - 1).bit_length())
        self.low_bits = bits // 2
        self.masks = (1 << (bits - self.low_bits)) - 1, (1 << self.low_bits) - 1
        digests = [hashlib.sha256(f"{key}:{number}".encode()).digest() for number in range(ROUNDS)]
        self.keys = [int.from_bytes(digest[:8], "little") for digest in digests]

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, part: slice) -> Tensor:
        import numpy as np
        import torch

        values = self._network(np.arange(*part.indices(self.num_samples), dtype=np.uint64))
        outside = np.flatnonzero(values >= self.num_samples)
        while len(outside):
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= self.num_samples]
        return torch.from_numpy(values.astype(np.int64))

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        import numpy as np

        high_mask, low_mask = (np.uint64(mask) for mask in self.masks)
        low_bits = np.uint64(self.low_bits)
        high, low = values >> low_bits, values & low_mask
        for number, key in enumerate(self.keys):
            if number % 2:
                low ^= _mixed(high, key) & low_mask
            else:
                high ^= _mixed(low, key) & high_mask
        return (high << low_bits) | low


def _mixed(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Returns 64 bits for each value: the last steps of splitmix64 (Steele, Lea and Flood, 2014)."""
    import numpy as np

    mixed = values + np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
