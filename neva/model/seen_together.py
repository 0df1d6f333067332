"""Attention in which positions of a group see each other, those behind them too; all others see what is before them.

A group is an image, a run of image positions, as Megatron-VLM's `--use-fixed-attn-mask` and transformers' Gemma 3 have
it; or what stands before the first answer of a sample, as PaliGemma has it.

Dimensions: B rows, S query positions of this rank, K key positions of a whole row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from neva.constants import IMAGE_TOKEN_ID
from neva.model.context import positions, sample_numbers


@dataclass
class SeenTogether:
    """Which positions see which; layers of one window share the mask, which is made when the first of them asks."""

    group_BK: Tensor
    """Number of the group that a position belongs to; 0: none."""
    sample_BK: Tensor
    """Number of its sample, that of padding another one."""
    queries_S: Tensor
    """Positions of this rank's queries in the row."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """Returns a bool mask [B, 1, S, K], True where a query looks; `window` bounds what is seen beside a group."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> Tensor:
        group_BS, sample_BS = self.group_BK[:, self.queries_S], self.sample_BK[:, self.queries_S]
        distance_SK = self.queries_S[:, None] - torch.arange(
            self.group_BK.size(1), device=self.queries_S.device
        )
        is_before_SK = distance_SK >= 0
        if window is not None:
            is_before_SK &= distance_SK < window
        is_same_BSK = (group_BS[:, :, None] == self.group_BK[:, None]) & (group_BS > 0)[:, :, None]
        is_own_BSK = sample_BS[:, :, None] == self.sample_BK[:, None]
        return ((is_before_SK | is_same_BSK) & is_own_BSK)[:, None]


def whole_images(
    input_ids_BK: Tensor, sample_lengths: Sequence[Sequence[int]] | None, group: ProcessGroup
) -> SeenTogether | None:
    """Returns what the layers of this rank are told; None where there is no image, and all see what is before them.

    Args:
        input_ids_BK: whole rows, `IMAGE_TOKEN_ID` at image positions.
        sample_lengths: of the samples in each row, in their order; None: a row is one.
        group: of the ranks that share each row (context parallel).
    """
    is_image_BK = input_ids_BK == IMAGE_TOKEN_ID
    if not bool(is_image_BK.any()):
        return None
    sample_BK = _samples(input_ids_BK, sample_lengths)
    # an image ends where its sample does
    begins_BK = is_image_BK.clone()
    begins_BK[:, 1:] &= ~(is_image_BK[:, :-1] & (sample_BK[:, 1:] == sample_BK[:, :-1]))
    return _together(begins_BK.cumsum(1) * is_image_BK, sample_BK, group)


def whole_prompts(
    input_ids_BK: Tensor,
    sample_lengths: Sequence[Sequence[int]] | None,
    prefix_lengths: Sequence[Sequence[int]],
    group: ProcessGroup,
) -> SeenTogether:
    """Returns what the layers of this rank are told.

    Args:
        input_ids_BK, sample_lengths, group: as for `whole_images`.
        prefix_lengths: how many positions of each sample, from its first on, see each other.
    """
    rows, length = input_ids_BK.shape
    group_BK = torch.zeros(rows, length, dtype=torch.int64)
    for row, prefixes in enumerate(prefix_lengths):
        first = 0
        for number, (sample, prefix) in enumerate(
            zip(sample_lengths[row] if sample_lengths else [length], prefixes, strict=True), 1
        ):
            group_BK[row, first : first + prefix] = number
            first += sample
    return _together(group_BK.to(input_ids_BK.device), _samples(input_ids_BK, sample_lengths), group)


def _samples(input_ids_BK: Tensor, sample_lengths: Sequence[Sequence[int]] | None) -> Tensor:
    rows, length = input_ids_BK.shape
    return sample_numbers(sample_lengths or [[length]] * rows, length).to(input_ids_BK.device)


def _together(group_BK: Tensor, sample_BK: Tensor, group: ProcessGroup) -> SeenTogether:
    length, device = group_BK.size(1), group_BK.device
    shard = positions(length, group, device)
    return SeenTogether(group_BK, sample_BK, torch.arange(length, device=device) if shard is None else shard)
