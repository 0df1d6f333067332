"""Sorts one rank's shard of a global batch into padded micro batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from neva.constants import IGNORE_INDEX
from neva.data.batch import Batch
from neva.data.dataset import Sample
from neva.families.media_tokens import MediumLayout


def collate(
    samples: Sequence[Sample], micro_batch_size: int, pad_id: int, pad_to_multiple_of: int, same_length: bool
) -> list[Batch]:
    """Builds micro batches of `micro_batch_size` samples, the longest first.

    That order pads least and meets a memory limit at once. All tensors are views of two blocks, so that a worker
    hands over two file descriptors and not three a micro batch.

    Args:
        samples: one rank's samples of one optimizer step.
        micro_batch_size: B.
        pad_id: fills `input_ids` on the right.
        pad_to_multiple_of: S is the longest sample rounded up to a multiple of this.
        same_length: the longest sample of all samples counts, not of each micro batch alone; pipelines need it.
    """
    ordered = sorted(samples, key=lambda sample: -len(sample.input_ids))
    groups = [ordered[first : first + micro_batch_size] for first in range(0, len(ordered), micro_batch_size)]
    longest = [len(groups[0][0].input_ids) if same_length else len(group[0].input_ids) for group in groups]
    lengths = [-(-length // pad_to_multiple_of) * pad_to_multiple_of for length in longest]
    sizes = [2 * len(group) * length for group, length in zip(groups, lengths, strict=True)]
    integers = torch.empty(sum(sizes), dtype=torch.int64).split(sizes)
    pixels = torch.cat([sample.pixel_values for sample in ordered])
    images = pixels.split([sum(len(sample.pixel_values) for sample in group) for group in groups])
    return [
        _fill(group, block.view(2, len(group), length), group_images, pad_id)
        for group, length, block, group_images in zip(groups, lengths, integers, images, strict=True)
    ]


def _fill(group: Sequence[Sample], block_2BS: Tensor, pixel_values: Tensor, pad_id: int) -> Batch:
    input_ids, labels = block_2BS
    input_ids.fill_(pad_id)
    labels.fill_(IGNORE_INDEX)
    for row, sample in enumerate(group):
        input_ids[row, : len(sample.input_ids)] = sample.input_ids
        labels[row, : len(sample.labels) - 1] = sample.labels[1:]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        pixel_values=pixel_values,
        record_ids=[sample.record_id for sample in group],
        num_tokens=sum(len(sample.input_ids) for sample in group),
        feature_order=feature_order([medium for sample in group for medium in sample.media]),
    )


def feature_order(media: Sequence[MediumLayout]) -> Tensor | None:
    """Returns the tile and the feature at each image position of media that follow each other, as `Batch` has them."""
    if all(medium.is_plain for medium in media):
        return None
    first_tiles = accumulate((medium.tiles for medium in media), initial=0)
    orders = [
        medium.order() + np.array([first, 0]) for medium, first in zip(media, first_tiles, strict=False)
    ]
    return torch.from_numpy(np.concatenate(orders))
