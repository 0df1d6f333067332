"""What one forward pass reads: the one structure between collation and model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from neva.constants import IGNORE_INDEX
from neva.families.media_tokens import PictureShape


class SampleOrigin(NamedTuple):
    """Where a sample comes from."""

    row: int
    """Of its data-parallel rank's share of the step, in the order of the sampler."""
    number: int
    """Of the record that it was made of, in the data set."""
    stands_for: tuple[int, ...]
    """The records of the sampler that are done with it: that one, and those that give no sample."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro batch: B sequences padded to S tokens, with N tiles of H x W pixels that fill F positions."""

    input_ids: Tensor
    """int64 [B, S], `IMAGE_TOKEN_ID` where image features go; padding on the right."""
    labels: Tensor
    """int64 [B, S], shifted: position t holds the token that t predicts, or `IGNORE_INDEX`."""
    pixel_values: Tensor
    """float32 [N, 3, H, W], tiles of all media in the order of the placeholders, row by row; N is 0 for text. Where
    they differ in shape, [E]: all numbers of the first, of the second, … (see `pictures`)."""
    record_ids: list[str]
    """Names the records in messages: B, or those of all samples in them."""
    num_tokens: int
    """Tokens of all samples, padding not counted."""
    feature_order: Tensor | None = None
    """int64 [F, 2], for each image position the tile and the feature of it that stand there; None: all features of all
    tiles, one after the other. Where features are interpolated, float64 [F, 4, 3]: tile, feature and weight of each of
    the four whose sum stands there."""
    pictures: list[PictureShape] = field(default_factory=list)
    """The tiles by their shapes where these differ; none: all are squares of the tower's size, or there are none."""
    num_image_tokens: int = 0
    """Those of them that are `IMAGE_TOKEN_ID`."""
    sample_lengths: list[list[int]] = field(default_factory=list)
    """Tokens of each sample in each row; none: a row is one sample, of a length that is not told."""
    sample_sources: list[list[int]] = field(default_factory=list)
    """Numbers of the sources that they are of, in a mixture."""
    origins: list[SampleOrigin] = field(default_factory=list)
    """Of all samples, in the order of `record_ids`."""

    @property
    def packed_lengths(self) -> list[list[int]] | None:
        """`sample_lengths` where a row holds several samples, which do not see each other; None: each is one sample."""
        return self.sample_lengths if any(len(row) > 1 for row in self.sample_lengths) else None

    @property
    def prefix_lengths(self) -> list[list[int]]:
        """Tokens of each sample in each row before the first that is learnt; all of them where none is."""
        lengths = self.sample_lengths or [[self.labels.size(1)]] * len(self.labels)
        found = []
        for labels_S, of_row in zip(self.labels != IGNORE_INDEX, lengths, strict=True):
            firsts = [part.nonzero()[:1] for part in labels_S[: sum(of_row)].split(list(of_row))]
            found.append(
                # the token that a position predicts stands behind it
                [
                    int(first) + 1 if len(first) else length
                    for first, length in zip(firsts, of_row, strict=True)
                ]
            )
        return found

    @property
    def first_label(self) -> int:
        """The first position with a loss, of any row; 0 where none has one."""
        return int((self.labels != IGNORE_INDEX).any(0).int().argmax())

    @property
    def num_labels(self) -> int:
        """Positions with a loss."""
        return int((self.labels != IGNORE_INDEX).sum())

    def label_sources(self, positions: Tensor | None = None) -> Tensor:
        """Returns for each label the number of its source, int64 [L]: in the order of the model's losses, column by
        column.

        Args:
            positions: int64 [s], those of the sequence that are read; None: all.
        """
        sources_BS = torch.zeros_like(self.labels)
        for row, (sources, lengths) in enumerate(zip(self.sample_sources, self.sample_lengths, strict=True)):
            of_tokens = torch.tensor(sources).repeat_interleave(torch.tensor(lengths))
            sources_BS[row, : len(of_tokens)] = of_tokens
        is_label_BS = self.labels != IGNORE_INDEX
        if positions is not None:
            sources_BS, is_label_BS = sources_BS[:, positions], is_label_BS[:, positions]
        return sources_BS.t()[is_label_BS.t()]

    def to(self, device: torch.device) -> Batch:
        """Returns the batch with its tensors on `device`; a copy from pinned memory does not wait."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            pixel_values=self.pixel_values.to(device, non_blocking=True),
            feature_order=None
            if self.feature_order is None
            else self.feature_order.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory; the data loader calls it where there are GPUs."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            labels=self.labels.pin_memory(),
            pixel_values=self.pixel_values.pin_memory(),
            feature_order=None if self.feature_order is None else self.feature_order.pin_memory(),
        )
