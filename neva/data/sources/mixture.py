"""The records of a run: those of one source, or of several, each as often as its weight says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from neva.config.data_sources import KEY, DataSource, data_sources, image_folder_key, is_mixture
from neva.data.index import Indexed, RecordIndex
from neva.data.sources.media_folder import MediaFolder, has_own_place
from neva.data.sources.source import Record, Records, open_source
from neva.errors import DataError, SampleError
from neva.formats.digest import file_digest

logger = logging.getLogger(__name__)


def open_media_folder(data_cfg: DictConfig) -> MediaFolder:
    """Opens `model.data.image_folder`; that of a mixture is empty, as each source looks into its own.

    Raises:
        DataError: there is none.
    """
    folder = None if is_mixture(data_cfg) else data_cfg.image_folder
    return MediaFolder(folder, data_cfg.max_media_mb << 20)


def open_video_folder(data_cfg: DictConfig) -> MediaFolder:
    """Opens `model.data.video_folder`, which is `image_folder` where it is null; DataError as `open_media_folder`."""
    if data_cfg.video_folder is None:
        return open_media_folder(data_cfg)
    return MediaFolder(data_cfg.video_folder, data_cfg.max_media_mb << 20, "model.data.video_folder")


def source_counts(records: Records) -> str:
    """Returns how many records of each source, or `dataset`, an epoch has; nothing where there is but one."""
    if isinstance(records, Mixture):
        return ", ".join(
            f"{part.name} {part.size:,} (of {len(part.records):,}, {part.size / len(records):.0%})"
            for part in records.parts
        )
    counts = records.record_index().dataset_counts() if isinstance(records, Indexed) else {}
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) if len(counts) > 1 else ""


def content_of(records: Records) -> str:
    """Returns what says which records these are: another content, another string."""
    if isinstance(records, Indexed):
        return records.record_index().content
    return file_digest(records.path) if records.path.is_file() else str(records.path)


def open_records(data_cfg: DictConfig) -> Records:
    """Opens what `model.data.data_path` names, without the records whose `dataset` is excluded.

    Raises:
        ConfigError: a list or table of another form.
        DataError: a source cannot be read.
    """
    excluded = list(data_cfg.datasets_exclude)
    sources = data_sources(data_cfg)
    if not is_mixture(data_cfg):
        records = open_source(sources[0].path, excluded)
        _warn_of_unknown(excluded, [records])
        return records
    kept = [source for source in sources if source.name not in excluded]
    if not kept:
        raise DataError(f"{KEY}: all sources are in model.data.datasets_exclude={excluded}")
    parts = [_part(data_cfg, source) for source in kept]
    _warn_of_unknown(excluded, [part.records for part in parts], [source.name for source in sources])
    return Mixture(parts)


def _warn_of_unknown(excluded: Sequence[str], opened: Sequence[Records], sources: Sequence[str] = ()) -> None:
    """Logs names of `datasets_exclude` that leave nothing out."""
    if not excluded:
        return
    datasets = [records.record_index().dataset_names for records in opened if isinstance(records, Indexed)]
    known = {*sources, *(name for names in datasets for name in names if name is not None)}
    if unknown := sorted({*excluded} - known):
        logger.warning(
            "model.data.datasets_exclude: no dataset is called %s; there are %s",
            ", ".join(unknown),
            ", ".join(sorted(known)) or "none with a name",
        )


def _part(data_cfg: DictConfig, source: DataSource) -> Part:
    max_bytes = data_cfg.max_media_mb << 20
    folder = MediaFolder(source.image_folder, max_bytes, image_folder_key(data_cfg, source))
    return Part(
        source.name,
        open_source(source.path, list(data_cfg.datasets_exclude)),
        folder,
        folder if data_cfg.video_folder is None else open_video_folder(data_cfg),
        source.weight,
    )


@dataclass(frozen=True)
class Part:
    """One source of a mixture."""

    name: str
    records: Records
    folder: MediaFolder
    """Of its images."""
    video_folder: MediaFolder
    weight: float

    @property
    def size(self) -> int:
        """Records that it gives to an epoch."""
        return max(1, round(self.weight * len(self.records)))

    def number(self, place: int) -> int:
        """Returns the number of the record at a place among `size`.

        Whole passes over the source come first; of the rest, records evenly spaced.
        """
        passes, rest = divmod(place, len(self.records))
        left = self.size - passes * len(self.records)
        return rest if left >= len(self.records) else rest * len(self.records) // left

    def numbers(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Returns `number` of all places."""
        places = np.arange(self.size, dtype=np.int64)
        whole = self.size - self.size % len(self.records)
        left = self.size - whole
        places[:whole] %= len(self.records)
        places[whole:] = np.arange(left) * len(self.records) // max(left, 1)
        return places


class Mixture:
    """The records of several sources behind each other; a sampler mixes them.

    Which record an index means depends on the sources and their weights alone: position, resume and layout are those
    of any other data set.
    """

    path = Path(KEY)

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._ends = np.cumsum([part.size for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[Part, int]:
        """Returns the source of a record, and its number there."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[which]
        return part, part.number(index - (int(self._ends[which]) - part.size))

    def __getitem__(self, index: int) -> Record:
        part, number = self.locate(index)
        record: Record | None = None
        try:
            record = part.records[number]
            images = [image if has_own_place(image) else part.folder / image for image in record.images]
            videos = [part.video_folder / video for video in record.videos]
        except SampleError as error:
            error.record_id = record.id if record else error.record_id
            error.place = self._place(part, (record.place if record else error.place) or f"record {number}")
            raise
        return replace(
            record,
            images=images,
            videos=videos,
            place=self._place(part, record.place or f"record {number}"),
            source=self.parts.index(part),
        )

    def _place(self, part: Part, place: str) -> str:
        return f"{part.name}, {place}"

    def record_index(self) -> RecordIndex:
        """Returns the indices of the sources, one behind the other, with their names as data sets.

        Raises:
            DataError: a source has none.
        """
        indices = [self._index_of(part) for part in self.parts]
        found = [index.of(part.numbers()) for index, part in zip(indices, self.parts, strict=True)]
        return RecordIndex(
            words=np.concatenate([index.words for index in found]),
            images=np.concatenate([index.images for index in found]),
            videos=np.concatenate([index.videos for index in found]),
            kinds=np.concatenate([index.kinds for index in found]),
            datasets=np.repeat(np.arange(len(found), dtype=np.uint16), [part.size for part in self.parts]),
            dataset_names=[part.name for part in self.parts],
            content="; ".join(
                f"{part.weight:g} x {part.name}: {index.content}"
                for index, part in zip(indices, self.parts, strict=True)
            ),
        )

    def _index_of(self, part: Part) -> RecordIndex:
        if not isinstance(part.records, Indexed):
            raise DataError(f"{KEY}: {part.name} is of a form without an index, which a mixture needs")
        return part.records.record_index()
