"""Conversations with images as training samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from neva.constants import IGNORE_INDEX, IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from neva.data.encode import ConversationEncoder, Encoded
from neva.data.media.files import MediaFiles
from neva.data.media.placeholders import Medium, as_images, media_in_order, pieces_of, whole_media
from neva.data.media.reader import MediaReader
from neva.data.odd_records import ODDITIES, OddCounts, read_as_llava, refuse
from neva.data.sources.media_folder import MediaFolder
from neva.data.sources.source import MediaFile, Record, Records
from neva.errors import DataError, DroppedError, OddRecordError, SampleError
from neva.families.media_tokens import MediumLayout

logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_RECORD = "none"
"""What names a blank sample."""


class Sample(NamedTuple):
    """S tokens, N tiles of H x W pixels; `labels` are not shifted."""

    input_ids: torch.Tensor
    """int64 [S], `IMAGE_TOKEN_ID` where image patches go."""
    labels: torch.Tensor
    """int64 [S], `IGNORE_INDEX` where there is no loss."""
    pixel_values: torch.Tensor
    """float32 [N, 3, H, W], the tiles of each medium in the order of the placeholders; N is 0 for text alone. Where
    media differ in shape, [E]: all numbers of the first tile, of the second, …"""
    record_id: str
    media: tuple[MediumLayout, ...] = ()
    """What each medium became, in that order."""
    source: int = 0
    """Number of the source that it is of, in a mixture."""
    number: int = -1
    """Of the record in the data set."""
    stands_for: tuple[int, ...] = ()
    """Records that a sampler asked for and that are done with it, see `SampleOrigin`."""


class ConversationDataset(Dataset[Sample]):
    """Reads and encodes one record an index.

    With `on_error` skip, a record that raises `SampleError` is replaced by the next one that does not, in the order
    of the file; so is one that is too long, with `truncation` drop, or has no label, with `no_label` drop. That
    depends on the files alone, so every rank and every run decides alike. More than the share `max_skipped` of the
    records is no matter of single records any more, and an error.
    """

    def __init__(
        self,
        records: Records,
        files: MediaFiles,
        video_folder: MediaFolder,
        encoder: ConversationEncoder,
        media: MediaReader,
        on_error: Literal["fail", "skip"],
        max_skipped: float,
        max_media: int | None,
        odd_records: Literal["llava", "fail", "skip"],
    ) -> None:
        self.records = records
        self.files = files
        self.video_folder = video_folder
        self.encoder = encoder
        self.media = media
        self.on_error = on_error
        self.max_skipped = max_skipped
        self.max_media = max_media
        self.odd_records = odd_records
        # Which records were skipped so far; shared memory, so that the main process sees what its workers did.
        self.skipped = torch.zeros(len(records), dtype=torch.bool).share_memory_()
        # And which were cut to the length of a sequence.
        self.shortened = torch.zeros(len(records), dtype=torch.bool).share_memory_()
        self.odd = OddCounts(len(records))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Returns the sample of a record or, with `on_error` skip, of the next good one.

        Raises:
            SampleError: naming the record.
            DataError: too many have been skipped.
        """
        for distance in range(len(self)):
            if (sample := self.read_or_skip((index + distance) % len(self))) is not None:
                return sample._replace(stands_for=(index,))
        raise SampleError(f"{self.records.path}: none of the {len(self)} records gives a sample")

    def read_or_skip(self, index: int) -> Sample | None:
        """Returns the sample of this record and no other; None, and counts it, when it is to be passed over.

        Raises:
            SampleError: naming the record.
            DataError: too many have been skipped.
        """
        try:
            return self.read(index)
        except SampleError as error:
            if not self.passes_over(error):
                raise
            if not self.skipped[index]:
                self.skipped[index] = True
                logger.warning("skipped: %s", error)
                self._refuse_too_many(error)
            return None

    def leave_out(self, indices: Sequence[int], example: int) -> None:
        """Counts records that are known to give no sample as skipped; raises what `example`, one of them, raises.

        Raises:
            SampleError: they are not to be passed over.
            DataError: they are too many.
        """
        new = len(indices) - int(self.skipped[indices].sum())
        self.skipped[indices] = True
        try:
            self.num_positions(example)
        except SampleError as error:
            if not self.passes_over(error):
                raise
            if new:
                logger.warning("%s records are left out, one of them: %s", f"{new:,}", error)
            self._refuse_too_many(error)

    def passes_over(self, error: SampleError) -> bool:
        """Returns whether the next good record is taken for one that raises this."""
        if isinstance(error, OddRecordError):
            return self.odd_records == "skip"
        return self.on_error == "skip" or isinstance(error, DroppedError)

    def _refuse_too_many(self, last: SampleError) -> None:
        if self.is_too_many(self.skipped_count):
            raise DataError(
                f"{self.skipped_count} of {len(self)} records had to be skipped, more than "
                f"model.data.max_skipped={self.max_skipped}; the last: {last}. Look whether model.data.data_path and "
                "model.data.image_folder are the right ones, or raise model.data.max_skipped"
            ) from last

    def is_too_many(self, skipped: int) -> bool:
        """Returns whether that many skipped records are more than `max_skipped` allows."""
        return skipped > max(1, self.max_skipped * len(self))

    @property
    def skipped_count(self) -> int:
        """How many different records this process and its workers have skipped so far."""
        return int(self.skipped.sum())

    def read(self, index: int) -> Sample:
        """Returns the sample of this record and no other; SampleError, naming the record, when it gives none."""
        record, encoded, media, pixels = self._prepare(index, self.media.pixels)
        return Sample(
            torch.from_numpy(np.array(encoded.input_ids, dtype=np.int64)),
            torch.from_numpy(np.array(encoded.labels, dtype=np.int64)),
            torch.cat(pixels) if pixels else self.media.no_pixels(),
            record.id,
            media,
            record.source,
            number=index,
            stands_for=(index,),
        )

    def num_positions(self, index: int) -> int:
        """Returns the tokens of the sample of this record; no image is decoded; raises as `read`."""
        _, encoded, _, _ = self._prepare(index, lambda medium, layout: None)
        return len(encoded.input_ids)

    def _settled(self, index: int, written: Record) -> Record:
        """Returns record `index` as it is to be read, what is odd about it counted.

        Raises:
            OddRecordError: it is odd, and `odd_records` is not llava.
            DataError: too many lost their images or placeholders.
        """
        template = self.encoder.template
        has_system_place = bool(template.system) or template.is_caption
        record = read_as_llava(written, has_system_place, self.media.video is not None)
        if not record.odd:
            return record
        if self.odd_records != "llava":
            refuse(record, written)
        place = f"{self.records.path}, {record.place or f'record {index}'} (id {record.id!r})"
        for kind in self.odd.add(index, record, place):
            if ODDITIES[kind].is_loss and self.is_too_many(count := self.odd.count(kind)):
                raise DataError(
                    f"{place}: {ODDITIES[kind].found}, as in {count} of {len(self)} records, more than "
                    f"model.data.max_skipped={self.max_skipped}; mark each image with one {IMAGE_PLACEHOLDER} where it "
                    f"stands, each video with one {VIDEO_PLACEHOLDER}, and write neither where there is none"
                )
        return record

    def check(self, index: int) -> Encoded:
        """Returns ids and labels; raises what `read` would, as far as that is seen without decoding an image."""
        return self._prepare(index, lambda medium, _: self.media.require(medium))[1]

    def media_of(self, index: int) -> list[Medium]:
        """Returns the media of a record, in the order of their placeholders; raises as `read`."""
        return self._media(self._settled(index, self.records[index]))

    def blank(self, pad_id: int) -> Sample:
        """Returns a sample of one token without image and label, for a place that no record is left for."""
        ids, labels = torch.tensor([pad_id]), torch.tensor([IGNORE_INDEX])
        return Sample(ids, labels, self.media.no_pixels(), NO_RECORD, ())

    def _media(self, record: Record) -> list[Medium]:
        """Returns the media of a record, in the order of their placeholders."""
        count = len(record.images) + len(record.videos)
        if self.max_media is not None and count > self.max_media:
            raise SampleError(
                f"found {count} images and videos, more than model.data.max_image_num={self.max_media}: raise it or "
                "split the record",
                "too many images",
            )
        images = [self.files.image(image) for image in record.images]
        return media_in_order(record.turns, images, [self._video(video) for video in record.videos])

    def _video(self, name: str | MediaFile) -> Path:
        path = self.video_folder / name
        if not isinstance(path, Path):
            raise SampleError(
                f"the video {path} lies in a tar; videos are read from a folder", "broken video"
            )
        return path

    def _prepare(
        self, index: int, of_medium: Callable[[Medium, MediumLayout], T]
    ) -> tuple[Record, Encoded, tuple[MediumLayout, ...], list[T]]:
        record: Record | None = None
        try:
            record = self.records[index]
            record = self._settled(index, record)
            media = self._media(record)
            layouts = tuple(self.media.layout(medium) for medium in media)
            encoded = self.encoder.fitted(as_images(record.turns, layouts), pieces_of(layouts), record.system)
            layouts = whole_media(layouts, encoded.num_images)
            found = [of_medium(medium, layout) for medium, layout in zip(media, layouts, strict=False)]
            if encoded.is_shortened:
                self.shortened[index] = True
            return record, encoded, layouts, found
        except SampleError as error:
            if record and record.images and not self.files.folder.is_dir():
                raise DataError(
                    f"model.data.image_folder: no folder at {self.files.folder} any more"
                ) from error
            record_id = record.id if record else error.record_id
            place = (record.place if record else error.place) or f"record {index}"
            name = place if record_id is None else f"{place} (id {record_id!r})"
            named = type(error)(f"{self.records.path}, {name}: {error}", error.kind)
            named.record_id, named.place = record_id, place
            raise named from error
