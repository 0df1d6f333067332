"""Attention in which the positions of an image see each other, those behind them too, and text sees what is before it.

So Megatron-VLM's `--use-fixed-attn-mask` and transformers' Gemma 3 have it. An image is a run of image positions.

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
class WholeImages:
    """Which positions see which; layers of one window share the mask, which is made when the first of them asks."""

    image_BK: Tensor
    """Number of the image that a position belongs to; 0: text."""
    sample_BK: Tensor
    """Number of its sample, that of padding another one."""
    queries_S: Tensor
    """Positions of this rank's queries in the row."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """Returns a bool mask [B, 1, S, K], True where a query looks; `window` bounds what text sees."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> Tensor:
        image_BS, sample_BS = self.image_BK[:, self.queries_S], self.sample_BK[:, self.queries_S]
        distance_SK = self.queries_S[:, None] - torch.arange(
            self.image_BK.size(1), device=self.queries_S.device
        )
        is_before_SK = distance_SK >= 0
        if window is not None:
            is_before_SK &= distance_SK < window
        is_same_BSK = (image_BS[:, :, None] == self.image_BK[:, None]) & (image_BS > 0)[:, :, None]
        is_own_BSK = sample_BS[:, :, None] == self.sample_BK[:, None]
        return ((is_before_SK | is_same_BSK) & is_own_BSK)[:, None]


def whole_images(
    input_ids_BK: Tensor, sample_lengths: Sequence[Sequence[int]] | None, group: ProcessGroup
) -> WholeImages | None:
    """Returns what the layers of this rank are told; None where there is no image, and all see what is before them.

    Args:
        input_ids_BK: whole rows, `IMAGE_TOKEN_ID` at image positions.
        sample_lengths: of the samples in each row, in their order; None: a row is one.
        group: of the ranks that share each row (context parallel).
    """
    is_image_BK = input_ids_BK == IMAGE_TOKEN_ID
    if not bool(is_image_BK.any()):
        return None
    rows, length = input_ids_BK.shape
    sample_BK = sample_numbers(sample_lengths or [[length]] * rows, length).to(input_ids_BK.device)
    # an image ends where its sample does
    begins_BK = is_image_BK.clone()
    begins_BK[:, 1:] &= ~(is_image_BK[:, :-1] & (sample_BK[:, 1:] == sample_BK[:, :-1]))
    shard = positions(length, group, input_ids_BK.device)
    return WholeImages(
        image_BK=begins_BK.cumsum(1) * is_image_BK,
        sample_BK=sample_BK,
        queries_S=torch.arange(length, device=input_ids_BK.device) if shard is None else shard,
    )
