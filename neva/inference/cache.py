"""Keys and values of the tokens so far, one memory for all layers, each row as long as it is.

Dimensions: R rows, G query groups of this rank, K positions of a row, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_GROWS_BY = 64
"""Positions; a multiple of what any kernel aligns to."""


class KeyValueCache:
    """Keys (already rotated) and values by layer, row, group and position.

    A row's token stands at its position: rows share no clock, so that one may start while another ends.
    """

    def __init__(
        self, layers: int, rows: int, groups: int, head_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._memory = torch.empty(layers, 2, rows, groups, 0, head_size, dtype=dtype, device=device)
        self._view()

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return self._memory.size(4)

    def reserve(self, positions: int) -> None:
        """Makes room for rows of that many positions; what is there stays."""
        if positions <= self.capacity:
            return
        old = self._memory
        length = -(-max(positions, self.capacity * 5 // 4) // _GROWS_BY) * _GROWS_BY
        self._memory = old.new_zeros(*old.shape[:4], length, old.size(5))
        self._memory[..., : old.size(4), :] = old
        self._view()

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Copies a row over another."""
        self._memory[:, :, target] = self._memory[:, :, source]

    def slots(self, rows_T: Tensor, positions_T: Tensor) -> Tensor:
        """Returns the indices [T * G * 2] of tokens' keys and values for `write`; they serve every layer."""
        return (self._starts_RG2[rows_T] + positions_T[:, None, None]).flatten()

    def write(self, layer: int, slots: Tensor, keys_and_values_TG2D: Tensor) -> None:
        """Stores a token's key and value of each group."""
        self._flat[layer].index_copy_(0, slots, keys_and_values_TG2D.flatten(0, 2))

    def read(self, layer: int, rows: int, positions: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values [R, G, K, D] of the first rows up to a position; views of the memory."""
        key_value = self._layers[layer][:, :rows, :, :positions]
        return key_value[0], key_value[1]

    def _view(self) -> None:
        _, _, rows, groups, length, head_size = self._memory.shape
        self._layers: Sequence[Tensor] = self._memory.unbind(0)
        self._flat = [layer.view(-1, head_size) for layer in self._layers]
        starts = torch.arange(2 * rows * groups, device=self._memory.device).view(2, rows, groups) * length
        self._starts_RG2 = starts.permute(1, 2, 0)
