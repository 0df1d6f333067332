"""How many positions each record takes, exactly: all records encoded once, without their images, and kept."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from neva.data.dataset import ConversationDataset
from neva.data.held_out import kept_beside
from neva.data.sources.mixture import content_of
from neva.errors import DroppedError, SampleError, UserError
from neva.formats.cached_arrays import cached_arrays

logger = logging.getLogger(__name__)

TOKEN_LENGTHS = "token-lengths"
"""What they are called beside the data."""
CHUNK = 256
"""Records that a worker encodes at a time."""
LOG_EVERY_S = 20.0
BROKEN, LEFT_OUT = 0, -1
"""Instead of a length: a record that gives no sample, and one that `on_error=fail` passes over too."""


def token_lengths(
    dataset: ConversationDataset, key: Mapping[str, Any], num_workers: int
) -> NDArray[np.int32]:
    """Returns the positions of each record, `BROKEN` or `LEFT_OUT` where it gives no sample, [N].

    They are measured when nobody has before, by one process of a machine, and mapped from a file ever after.

    Args:
        dataset: of the records.
        key: `encoding_key` of it.
        num_workers: processes that encode; 0: this one.
    """
    return cached_arrays(
        kept_beside(dataset.records),
        TOKEN_LENGTHS,
        key,
        lambda: {"positions": _measure(dataset, num_workers)},
    )["positions"]


def encoding_key(dataset: ConversationDataset, datasets_exclude: list[str]) -> dict[str, Any]:
    """Returns all that the lengths depend on beside the file of records, as JSON can write it."""
    encoder = dataset.encoder
    tokenizer = encoder.tokenizer.backend_tokenizer.to_str() + repr(encoder.tokenizer.special_tokens_map)
    return {
        "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest()[:12],
        "encoder": {
            field.name: repr(getattr(encoder, field.name))
            for field in fields(encoder)
            if field.name != "tokenizer"
        },
        "media": f"{dataset.media.rules}, {dataset.media.video}, at most {dataset.max_media}",
        "odd_records": dataset.odd_records,
        "content": content_of(dataset.records),
        "datasets_exclude": sorted(datasets_exclude),
        "records": len(dataset),
    }


class _Measured(Dataset["NDArray[np.int32] | UserError"]):
    """Lengths of some records; what is no matter of one record is handed over as a value."""

    def __init__(self, dataset: ConversationDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: range) -> NDArray[np.int32] | UserError:
        try:
            return np.array([_length(self.dataset, index) for index in indices], dtype=np.int32)
        except UserError as error:
            return error


def _length(dataset: ConversationDataset, index: int) -> int:
    try:
        return dataset.num_positions(index)
    except DroppedError:
        return LEFT_OUT
    except SampleError:
        return BROKEN


def _measure(dataset: ConversationDataset, num_workers: int) -> NDArray[np.int32]:
    positions = np.zeros(len(dataset), dtype=np.int32)
    chunks = [range(first, min(first + CHUNK, len(dataset))) for first in range(0, len(dataset), CHUNK)]
    loader = DataLoader(_Measured(dataset), sampler=chunks, batch_size=None, num_workers=num_workers)
    start = told = time.monotonic()
    for indices, found in zip(chunks, loader, strict=True):
        if isinstance(found, UserError):
            raise found
        positions[indices.start : indices.stop] = found
        if time.monotonic() - told > LOG_EVERY_S:
            told = time.monotonic()
            logger.info("lengths measured of %s of %s records", f"{indices.stop:,}", f"{len(dataset):,}")
    logger.info("lengths of %s records measured in %.1f s", f"{len(dataset):,}", time.monotonic() - start)
    return positions
