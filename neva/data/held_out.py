"""The records of a run in two parts: those that train, and those that are held out to validate."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from neva.config.data_sources import paths_of
from neva.data.index import Indexed, RecordIndex
from neva.data.sources.mixture import Mixture, content_of, open_records
from neva.data.sources.source import Record, Records, open_source
from neva.errors import DataError, SampleError
from neva.formats.cached_arrays import cached_arrays

_HASHES = 2.0**64


class RecordsPart:
    """Some of the records of a path, under the places that they have there."""

    def __init__(self, records: Records, indices: NDArray[np.int64]) -> None:
        self.records, self.indices = records, indices

    @property
    def path(self) -> Path:
        """Where they come from, for messages."""
        return self.records.path

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        """Returns record `index` of the part; SampleError when it is malformed."""
        whole = int(self.indices[index])
        try:
            record = self.records[whole]
        except SampleError as error:
            error.place = error.place or f"record {whole}"
            raise
        return replace(record, place=record.place or f"record {whole}")


class IndexedPart(RecordsPart):
    """The same of records that have an index."""

    def record_index(self) -> RecordIndex:
        """Returns what is known of the records of the part."""
        assert isinstance(self.records, Indexed)
        return self.records.record_index().of(self.indices)


def kept_beside(records: Records) -> Path:
    """Returns the file or folder beside which is kept what is made of records: their own, or that of the first."""
    while isinstance(records, RecordsPart):
        records = records.records
    if isinstance(records, Mixture):
        records = records.parts[0].records
    return records.path if records.path.exists() else paths_of(str(records.path))[0]


def source_names(records: Records) -> list[str]:
    """Returns the names of the sources that records are of, in the order of their numbers; none: there is but one."""
    while isinstance(records, RecordsPart):
        records = records.records
    return [part.name for part in records.parts] if isinstance(records, Mixture) else []


def training_records(data_cfg: DictConfig) -> Records:
    """Returns the records of a `model.data` section that train: all that are not held out.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    records = open_records(data_cfg)
    share = data_cfg.validation_split
    return records if share == 0 else _part(records, data_cfg, is_held_out=False)


def validation_records(data_cfg: DictConfig) -> Records | None:
    """Returns the records that validate, of a file of their own or split off; None: there are none.

    Raises:
        DataError: the file, or the share, holds none, or they cannot be read.
    """
    if data_cfg.validation is not None:
        return open_source(data_cfg.validation, list(data_cfg.datasets_exclude), "model.data.validation")
    if data_cfg.validation_split == 0:
        return None
    return _part(open_records(data_cfg), data_cfg, is_held_out=True)


def content_hash(record: Record) -> int:
    """Returns 64 bits that stand for turns, images and system prompt of a record, whatever its id and place.

    Of media the names alone: a split is the same wherever the data is copied to.
    """
    turns = [[turn.role, turn.text] for turn in record.turns]
    media = [[PurePath(str(file)).name for file in files] for files in (record.images, record.videos)]
    content = json.dumps([turns, *media, record.system])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "little")


def _part(records: Records, data_cfg: DictConfig, is_held_out: bool) -> RecordsPart:
    """Returns the records whose hash lies below the share, or the others.

    A record lies on one side for good, whatever is added to the file or taken from it, and its duplicates with it.
    """
    share = data_cfg.validation_split
    key = {
        "datasets_exclude": sorted(data_cfg.datasets_exclude), "share": share, "content": content_of(records),
    }  # fmt: skip
    held_out = cached_arrays(
        kept_beside(records), "held_out", key, lambda: {"indices": _held_out(records, share)}
    )
    indices = held_out["indices"]
    if not 0 < len(indices) < len(records):
        raise DataError(
            f"model.data.validation_split={share} holds out {len(indices)} of the {len(records)} records of "
            f"{records.path}; choose another share, or give model.data.validation"
        )
    rest = np.ones(len(records), dtype=bool)
    rest[indices] = False
    part = IndexedPart if isinstance(records, Indexed) else RecordsPart
    return part(records, indices if is_held_out else np.flatnonzero(rest))


def _held_out(records: Records, share: float) -> NDArray[np.int64]:
    found = []
    for index in range(len(records)):
        try:
            if content_hash(records[index]) < share * _HASHES:
                found.append(index)
        except SampleError:
            continue  # trains, where `on_error` decides what becomes of it
    return np.array(found, dtype=np.int64)
