"""Rotary position embedding of tokens that stand anywhere, in place: cos and sin of all positions are taken once.

Dimensions: T tokens, K positions, R elements of a head that are turned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neva.model.rotary import Rotary


class RotaryTable:
    """Cos and sin of every position, for each set of angles.

    Args:
        rotary: the model's, which knows base and scaling.
        like: of the dtype and on the device of the model.
    """

    def __init__(self, rotary: Rotary, like: Tensor) -> None:
        self._rotary = rotary
        self._width = rotary.language.rotary_dim
        self._factor = rotary.attention_factor
        sets = 1 + rotary.has_local
        self._table_2KR = like.new_empty(2, 0, sets * self._width)

    def at(self, positions_T: Tensor, limit: int) -> list[tuple[Tensor, Tensor]]:
        """Returns cos, and sin with the sign that `turn` gives it, [T, 1, 1, R] each, of each set of angles.

        Positions are below `limit`. Where angles depend on the length, a position ends its sequence.
        """
        if self._table_2KR.size(1) < limit:
            self._table_2KR = self._waves(self._angles(limit))
        waves_2T11R = self._table_2KR.index_select(1, positions_T)[:, :, None, None]
        if self._rotary.has_local:
            return self._split(waves_2T11R)
        cos, sin = waves_2T11R.unbind(0)
        return [(cos, sin)]

    def of_whole(
        self, lengths: Sequence[int], positions_T: Tensor, limit: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Returns the same of whole sequences, one after another."""
        original = self._rotary.original_length
        if original is None or max(lengths) <= original:
            return self.at(positions_T, limit)
        device = self._table_2KR.device
        angles = [self._rotary.angles(length, device) for length in lengths]
        return self._split(self._waves(torch.cat(angles))[:, :, None, None])

    def _angles(self, limit: int) -> Tensor:
        """Returns the angles [K, R] of positions that each end their sequence."""
        device, original = self._table_2KR.device, self._rotary.original_length
        if original is None or limit <= original:
            return self._rotary.angles(limit, device)
        first = int(original)
        rows = [self._rotary.angles(first, device)]
        rows += [self._rotary.angles_of_last(length, device) for length in range(first + 1, limit + 1)]
        return torch.cat(rows)

    def _waves(self, angles_KR: Tensor) -> Tensor:
        sin = angles_KR.sin()
        for part in sin.split(self._width, -1):
            part[:, : self._width // 2].neg_()
        return (torch.stack([angles_KR.cos(), sin]) * self._factor).to(self._table_2KR)

    def _split(self, waves_2T11R: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(part[0], part[1]) for part in waves_2T11R.split(self._width, -1)]


def turn(heads: Tensor, cos_T11R: Tensor, sin_T11R: Tensor) -> None:
    """Turns queries or keys [T, …, D] in place (https://arxiv.org/abs/2104.09864); halves are pairs, as in LLaMA."""
    heads = heads[..., : cos_T11R.size(-1)]
    halves_swapped = heads.roll(heads.size(-1) // 2, -1)
    heads.mul_(cos_T11R).addcmul_(halves_swapped, sin_T11R)
