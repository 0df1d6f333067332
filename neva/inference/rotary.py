"""Rotary position embedding with cos and sin taken once: Megatron's layers take them anew, for queries and for keys.

Dimensions: T tokens, K positions, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RotaryTable:
    """Cos and sin of every position.

    Args:
        embedding: Megatron's, which knows base and scaling.
        like: of the dtype and on the device of the model.
    """

    def __init__(self, embedding: Any, like: Tensor) -> None:
        self._embedding = embedding
        self._table_2KD = like.new_empty(2, 0, 2 * len(embedding.inv_freq))

    def at(self, positions_T: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Returns cos, and sin with the sign that `turn` gives it, [T, 1, 1, D] each, of positions below `limit`."""
        if self._table_2KD.size(1) < limit:
            angles_KD = self._embedding.get_emb(limit)[:, 0, 0]
            sin = angles_KD.sin()
            sin[:, : sin.size(1) // 2].neg_()
            self._table_2KD = torch.stack([angles_KD.cos(), sin]).to(self._table_2KD)
        cos, sin = self._table_2KD.index_select(1, positions_T)[:, :, None, None].unbind(0)
        return cos, sin


def turn(heads: Tensor, cos_T11D: Tensor, sin_T11D: Tensor) -> None:
    """Turns queries or keys [T, …, D] in place (https://arxiv.org/abs/2104.09864); halves are pairs, as in LLaMA."""
    halves_swapped = heads.roll(heads.size(-1) // 2, -1)
    heads.mul_(cos_T11D).addcmul_(halves_swapped, sin_T11D)
