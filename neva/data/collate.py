"""Sorts one rank's shard of a global batch into padded micro batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.batch import Batch, SampleOrigin
from neva.data.dataset import Sample
from neva.families.media_tokens import MediumLayout, PictureShape

Row = Sequence[Sample]
"""What stands in one row of a micro batch: a sample, or several that are packed."""


def collate(
    rows: Sequence[Row], micro_batch_size: int, pad_id: int, pad_to_multiple_of: int, same_length: bool
) -> list[Batch]:
    """Builds micro batches of `micro_batch_size` rows, the longest first.

    That order pads least and meets a memory limit at once. All tensors are views of two blocks, so that a worker
    hands over two file descriptors and not three a micro batch.

    Args:
        rows: one rank's share of one optimizer step.
        micro_batch_size: B.
        pad_id: fills `input_ids` on the right.
        pad_to_multiple_of: S is the longest row rounded up to a multiple of this.
        same_length: the longest of all rows counts, not of each micro batch alone; pipelines need it.
    """
    places = sorted(range(len(rows)), key=lambda place: -num_tokens(rows[place]))
    ordered = [rows[place] for place in places]
    firsts = range(0, len(ordered), micro_batch_size)
    groups = [ordered[first : first + micro_batch_size] for first in firsts]
    longest = [num_tokens(groups[0][0] if same_length else group[0]) for group in groups]
    lengths = [-(-length // pad_to_multiple_of) * pad_to_multiple_of for length in longest]
    sizes = [2 * len(group) * length for group, length in zip(groups, lengths, strict=True)]
    integers = torch.empty(sum(sizes), dtype=torch.int64).split(sizes)
    pixels = torch.cat([sample.pixel_values for row in ordered for sample in row])
    images = pixels.split(
        [sum(len(sample.pixel_values) for row in group for sample in row) for group in groups]
    )
    return [
        _fill(
            group, places[first : first + micro_batch_size], block.view(2, -1, length), group_images, pad_id
        )
        for group, first, length, block, group_images in zip(
            groups, firsts, lengths, integers, images, strict=True
        )
    ]


def num_tokens(row: Row) -> int:
    """Returns the tokens of a row's samples."""
    return sum(len(sample.input_ids) for sample in row)


def _fill(
    group: Sequence[Row], places: Sequence[int], block_2BS: Tensor, pixel_values: Tensor, pad_id: int
) -> Batch:
    input_ids, labels = block_2BS
    input_ids.fill_(pad_id)
    labels.fill_(IGNORE_INDEX)
    for number, row in enumerate(group):
        first = 0
        for sample in row:
            end = first + len(sample.input_ids)
            input_ids[number, first:end] = sample.input_ids
            # shifted within the sample: its last token predicts nothing, not the next sample's first
            labels[number, first : end - 1] = sample.labels[1:]
            first = end
    media = [medium for row in group for sample in row for medium in sample.media]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        pixel_values=pixel_values,
        record_ids=[sample.record_id for row in group for sample in row],
        num_tokens=sum(map(num_tokens, group)),
        feature_order=feature_order(media),
        pictures=picture_shapes(media),
        num_image_tokens=int((input_ids == IMAGE_TOKEN_ID).sum()),
        sample_lengths=[[len(sample.input_ids) for sample in row] for row in group],
        sample_sources=[[sample.source for sample in row] for row in group],
        origins=[
            SampleOrigin(place, sample.number, sample.stands_for)
            for place, row in zip(places, group, strict=True)
            for sample in row
        ],
    )


def picture_shapes(media: Sequence[MediumLayout]) -> list[PictureShape]:
    """Returns the tiles of media that follow each other by their shapes, as `Batch` has them."""
    return [picture for medium in media for picture in medium.pictures]


def feature_order(media: Sequence[MediumLayout]) -> Tensor | None:
    """Returns the tile and the feature at each image position of media that follow each other, as `Batch` has them."""
    if all(medium.is_plain for medium in media):
        return None
    first_tiles = accumulate((medium.tiles for medium in media), initial=0)
    orders = [
        medium.order() + np.array([first, 0]) for medium, first in zip(media, first_tiles, strict=False)
    ]
    return torch.from_numpy(np.concatenate(orders))
