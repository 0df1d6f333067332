"""All records of a run, really read: which give no sample, which come twice, how long the others are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from torch.utils.data import DataLoader, Dataset

from neva.data.dataset import ConversationDataset, Sample
from neva.data.held_out import content_hash
from neva.data.odd_records import ODDITIES
from neva.data.sources.source import Record
from neva.errors import SampleError, UserError

CHUNK = 32
"""Records that a worker reads at a time."""
DUPLICATE, SHORTENED, ALSO_TRAINED = "duplicate", "shortened", "also trained"
"""What is said of records that give a sample."""


@dataclass(frozen=True)
class Remark:
    """What is wrong, or odd, with one record."""

    index: int
    """In the data set, from 0."""
    record_id: str | None
    place: str
    """Where it stands in its file."""
    kind: str
    message: str
    is_broken: bool
    """Whether the record gives no sample."""


@dataclass
class CheckedRecord:
    """One record as a worker has read it."""

    num_tokens: int = 0
    """0: it gives no sample."""
    num_images: int = 0
    content: int = 0
    """Hash of turns, system prompt and pixels."""
    remarks: list[Remark] = field(default_factory=list)


class DataCheck:
    """Results for N records: 20 bytes a record, and a remark for each that is odd."""

    def __init__(self, num_records: int) -> None:
        self.num_tokens = np.zeros(num_records, dtype=np.int64)
        self.num_images = np.zeros(num_records, dtype=np.int32)
        self.contents = np.zeros(num_records, dtype=np.uint64)
        self.remarks: list[Remark] = []

    def add(self, index: int, found: CheckedRecord) -> None:
        """Takes in one record."""
        self.num_tokens[index], self.num_images[index] = found.num_tokens, found.num_images
        self.contents[index] = found.content
        self.remarks += found.remarks

    def add_duplicates(self, dataset: ConversationDataset) -> None:
        """Remarks on the samples that equal an earlier one in turns, images and system prompt."""
        samples = np.flatnonzero(self.num_tokens)
        _, first, which = np.unique(self.contents[samples], return_index=True, return_inverse=True)
        for number in np.flatnonzero(first[which] != np.arange(len(samples))):
            index, earlier = int(samples[number]), dataset.records[int(samples[first[which[number]]])]
            message = f"the same turns and images as {earlier.place} (id {earlier.id!r})"
            self.remarks.append(_remark(index, dataset.records[index], DUPLICATE, message))
        self.remarks.sort(key=lambda remark: remark.index)

    def add_trained(
        self, dataset: ConversationDataset, other: DataCheck, trained: ConversationDataset
    ) -> None:
        """Remarks on the samples of a held-out set that equal one which trains."""
        samples = np.flatnonzero(other.num_tokens)
        place = {
            int(content): int(index) for content, index in zip(other.contents[samples], samples, strict=True)
        }
        for index in map(int, np.flatnonzero(self.num_tokens)):
            if (twin := place.get(int(self.contents[index]))) is not None:
                record = trained.records[twin]
                message = f"the same turns and images as {record.place} (id {record.id!r}) of {trained.records.path}"
                self.remarks.append(_remark(index, dataset.records[index], ALSO_TRAINED, message))
        self.remarks.sort(key=lambda remark: remark.index)


class _Reader(Dataset["list[CheckedRecord] | UserError"]):
    """Reads chunks of records in a worker; what is no matter of one record is handed over as a value."""

    def __init__(self, dataset: ConversationDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: range) -> list[CheckedRecord] | UserError:
        try:
            return [_read(self.dataset, index) for index in indices]
        except UserError as error:
            return error


def check_all(dataset: ConversationDataset, num_workers: int) -> Iterator[list[tuple[int, CheckedRecord]]]:
    """Yields index and result of all records in their order, some at a time.

    Args:
        dataset: what training would read.
        num_workers: processes that read and decode; 0: this one.

    Raises:
        UserError: something is wrong that is no matter of a single record.
    """
    chunks = [range(first, min(first + CHUNK, len(dataset))) for first in range(0, len(dataset), CHUNK)]
    loader = DataLoader(
        _Reader(dataset),
        sampler=chunks,
        batch_size=None,
        num_workers=num_workers,
    )
    for indices, found in zip(chunks, loader, strict=True):
        if isinstance(found, UserError):
            raise found
        yield list(zip(indices, found, strict=True))


def _read(dataset: ConversationDataset, index: int) -> CheckedRecord:
    try:
        sample = dataset.read(index)
    except SampleError as error:
        return CheckedRecord(
            remarks=[Remark(index, error.record_id, error.place, error.kind, str(error), True)]
        )
    record = dataset.records[index]
    remarks = []
    if dataset.shortened[index]:
        message = f"{dataset.encoder.truncation} to {len(sample.input_ids)} tokens to fit into a sequence"
        remarks.append(_remark(index, record, SHORTENED, message))
    for kind in dataset.odd.of_record(index):
        remarks.append(_remark(index, record, kind, f"{ODDITIES[kind].found}: {ODDITIES[kind].reading}"))
    return CheckedRecord(len(sample.input_ids), len(sample.media), _content(record, sample), remarks)


def _content(record: Record, sample: Sample) -> int:
    """Returns 64 bits that stand for turns, system prompt and the pixels of all media, whatever these are called."""
    said = content_hash(replace(record, images=[], videos=[]))
    seen = hashlib.blake2b(
        sample.pixel_values.numpy().tobytes(), digest_size=8, key=said.to_bytes(8, "little")
    )
    return int.from_bytes(seen.digest(), "little")


def _remark(index: int, record: Record, kind: str, message: str) -> Remark:
    return Remark(index, record.id, record.place, kind, message, False)
