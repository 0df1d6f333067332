"""Cuts one rank's share of a global batch into padded micro batches.

Shapes: B micro batch, S sequence, N images, H and W pixels.
"""

from collections.abc import Sequence
from typing import TypedDict

import torch

from neva.constants import IGNORE_INDEX
from neva.data.dataset import Sample


class MicroBatch(TypedDict):
    """What one forward pass reads. Padding stands on the right: `pad_id` without label."""

    input_ids: torch.Tensor
    """int64 [B, S]"""
    labels: torch.Tensor
    """int64 [B, S], shifted: position t holds the token that t predicts, or `IGNORE_INDEX`."""
    position_ids: torch.Tensor
    """int64 [B, S]"""
    pixel_values: torch.Tensor
    """float32 [N, 3, H, W], in the order of the placeholders, row by row; N is 0 for text alone."""
    record_ids: list[str]
    """Names the B records in messages."""
    num_tokens: int
    """Tokens of the B samples, padding not counted."""


def collate(
    samples: Sequence[Sample], micro_batch_size: int, pad_id: int, pad_to_multiple_of: int, same_length: bool
) -> list[MicroBatch]:
    """Micro batches of `micro_batch_size` samples, the longest first, which pads least and meets a memory
    limit at once.

    S is the longest sample of the micro batch or, with `same_length` (pipelines need it), of the whole share,
    rounded up to `pad_to_multiple_of`. The share's tensors are views of two blocks, so that a worker hands
    over two file descriptors and not four a micro batch.
    """
    ordered = sorted(samples, key=lambda sample: -len(sample.input_ids))
    groups = [ordered[first : first + micro_batch_size] for first in range(0, len(ordered), micro_batch_size)]
    longest = [len(groups[0][0].input_ids) if same_length else len(group[0].input_ids) for group in groups]
    lengths = [-(-length // pad_to_multiple_of) * pad_to_multiple_of for length in longest]
    integers = torch.empty(
        3 * sum(len(group) * length for group, length in zip(groups, lengths, strict=True)), dtype=torch.int64
    )
    pixels = torch.cat([sample.pixel_values for sample in ordered])
    micro_batches: list[MicroBatch] = []
    first_integer = first_image = 0
    for group, length in zip(groups, lengths, strict=True):
        size = 3 * len(group) * length
        block = integers[first_integer : first_integer + size].view(3, len(group), length)
        images = sum(len(sample.pixel_values) for sample in group)
        micro_batches.append(_fill(group, block, pixels[first_image : first_image + images], pad_id))
        first_integer += size
        first_image += images
    return micro_batches


def _fill(group: Sequence[Sample], block: torch.Tensor, pixels: torch.Tensor, pad_id: int) -> MicroBatch:
    input_ids, labels, position_ids = block
    input_ids.fill_(pad_id)
    labels.fill_(IGNORE_INDEX)
    position_ids.copy_(torch.arange(block.shape[2]))
    for row, sample in enumerate(group):
        input_ids[row, : len(sample.input_ids)] = sample.input_ids
        labels[row, : len(sample.labels) - 1] = sample.labels[1:]
    return MicroBatch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        pixel_values=pixels,
        record_ids=[sample.record_id for sample in group],
        num_tokens=sum(len(sample.input_ids) for sample in group),
    )
