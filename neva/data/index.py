"""What is known of the records of a data set without reading them: words, images, kinds, and where each lies."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from neva.data.sources.conversation import parse_record
from neva.data.sources.source import Record
from neva.errors import DataError, SampleError
from neva.formats.cached_arrays import cached_arrays

FORMAT = 3
"""Of the index, and of how words and images are counted: an index of another one is made again."""

SMALL = 1 << 20
"""Bytes of a source whose index is not worth a file: it is made whenever the source is opened."""

TEXT, IMAGES, BROKEN = 0, 1, 255
"""Kinds of records: of text alone, with images or videos, malformed."""

MOST = 65_535
"""Images or videos of a record, and names of data sets, that an index counts."""
_CODES = {"words": "i", "images": "H", "videos": "H", "kinds": "B", "datasets": "H"}

Arrays = Mapping[str, NDArray[Any]]
Kept = Callable[[str, Callable[[], Arrays]], Arrays]


@dataclass(frozen=True, eq=False)
class RecordIndex:
    """What is known of N records, in arrays that processes share; 11 bytes a record."""

    words: NDArray[np.int32]
    """[N], parts between white space in all turns, `<image>` among them."""
    images: NDArray[np.uint16]
    """[N]"""
    videos: NDArray[np.uint16]
    """[N]"""
    kinds: NDArray[np.uint8]
    """[N]"""
    datasets: NDArray[np.uint16]
    """[N], which of `dataset_names` a record's `dataset` is."""
    dataset_names: list[str | None]
    content: str
    """Says what the source holds: another content, another string."""

    def __len__(self) -> int:
        return len(self.words)

    def of(self, numbers: NDArray[np.integer] | None) -> RecordIndex:
        """Returns what is known of the records of these numbers; None: of all."""
        if numbers is None:
            return self
        return RecordIndex(
            self.words[numbers],
            self.images[numbers],
            self.videos[numbers],
            self.kinds[numbers],
            self.datasets[numbers],
            self.dataset_names,
            self.content,
        )

    def dataset_counts(self) -> dict[str | None, int]:
        """Returns how many records there are of each `dataset`."""
        counts = np.bincount(self.datasets, minlength=len(self.dataset_names)).tolist()
        return dict(zip(self.dataset_names, counts, strict=True))


@runtime_checkable
class Indexed(Protocol):
    """Records of which an index tells words and images."""

    def record_index(self) -> RecordIndex:
        """Returns the index of these records, in their order."""


class IndexBuilder:
    """Collects rows of an index.

    Args:
        columns: further columns, numbers that say where a record lies, and their type codes as in `array`.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = {name: array(code) for name, code in (_CODES | dict(columns)).items()}
        self._datasets: dict[str | None, int] = {}

    def add(self, raw: Any, **place: int) -> None:
        """Adds a record by its parsed JSON value; None: it has none."""
        try:
            self.add_record(parse_record(raw, ""), dataset_of(raw), **place)
        except SampleError:
            self.add_record(None, dataset_of(raw), **place)

    def add_record(self, record: Record | None, dataset: str | None, **place: int) -> None:
        """Adds a record; None: a malformed one."""
        texts = [turn.text or "" for turn in record.turns] if record else []
        images = min(len(record.images) if record else 0, MOST)
        videos = min(len(record.videos) if record else 0, MOST)
        row = {
            "words": sum(len(text.split()) for text in texts),
            "images": images,
            "videos": videos,
            "kinds": BROKEN if record is None else IMAGES if images or videos else TEXT,
            "datasets": self._datasets.setdefault(dataset, len(self._datasets)),
            **place,
        }
        if len(self._datasets) > MOST:
            raise DataError(
                f"more than {len(self._datasets) - 1} values of dataset; expected names of data sets"
            )
        for name, value in row.items():
            self._columns[name].append(value)

    def arrays(self, content: str) -> dict[str, NDArray[Any]]:
        """Returns the columns, and what `index_of` needs beside them."""
        about = json.dumps({"datasets": list(self._datasets), "content": content}).encode()
        arrays = {
            name: np.frombuffer(column, dtype=column.typecode) for name, column in self._columns.items()
        }
        return {**arrays, "about": np.frombuffer(about, dtype=np.uint8)}


def dataset_of(raw: Any) -> str | None:
    """Returns the `dataset` that a record says it is of."""
    dataset = raw.get("dataset") if isinstance(raw, Mapping) else None
    return dataset if isinstance(dataset, str) else None


def index_of(arrays: Arrays) -> RecordIndex:
    """Returns the index in what `IndexBuilder.arrays` gave."""
    about = json.loads(arrays["about"].tobytes())
    return RecordIndex(
        **{name: arrays[name] for name in _CODES}, dataset_names=about["datasets"], content=about["content"]
    )


def kept_arrays(
    source: Path,
    size: int,
    key: Mapping[str, Any],
    name: str,
    build: Callable[[], Arrays],
) -> Arrays:
    """Returns what `build` returns: from the files of an earlier call, where the source is not small.

    Args:
        source: file or folder that the arrays are made from.
        size: of the source, in bytes.
        key: what they depend on beside the source.
        name: of the arrays.
        build: makes them.

    Raises:
        DataError: the files cannot be written.
    """
    if size < SMALL:
        return build()
    return cached_arrays(source, name, {"format": FORMAT, **key}, build)


def sizes_and_times(files: Sequence[Path]) -> tuple[int, list[list[object]]]:
    """Returns the bytes of all files, and name, size and time of change of each, as a key of what is made from them."""
    stats = [file.stat() for file in files]
    listed = [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in zip(files, stats, strict=True)]
    return sum(stat.st_size for stat in stats), listed


def open_index(
    path: Path, unit: str, build: Callable[[], Arrays], datasets_exclude: Collection[str], kept: Kept
) -> tuple[Arrays, NDArray[np.integer] | None]:
    """Returns the arrays of an index, and the numbers of the records whose `dataset` is not excluded; None: of all.

    Args:
        path: what was asked for.
        unit: what a record is called there.
        build: makes the arrays.
        datasets_exclude: names.
        kept: returns arrays of a name that are made once: `kept_arrays` of the source.

    Raises:
        DataError: no record is left.
    """
    arrays = kept(f"{unit}s", build)
    index = index_of(arrays)
    numbers = _numbers(index, datasets_exclude, kept)
    if len(index if numbers is None else numbers) == 0:
        raise DataError(
            f"model.data.data_path: {path} holds no {unit} (datasets_exclude={list(datasets_exclude)})"
        )
    return arrays, numbers


def _numbers(index: RecordIndex, datasets_exclude: Collection[str], kept: Kept) -> NDArray[np.integer] | None:
    excluded = [number for number, name in enumerate(index.dataset_names) if name in datasets_exclude]
    if not excluded:
        return None
    name = f"kept-{'-'.join(map(str, excluded))}"[:80]
    return kept(name, lambda: {"numbers": np.flatnonzero(~np.isin(index.datasets, excluded))})["numbers"]
