"""Tables as Hugging Face data sets are published: `.parquet` files, or a folder of them.

Three forms of rows: Cauldron's (`images`, `texts` of `{user, assistant}`), OneVision's (`image`, `conversations`), and
any other with the columns of a LLaVA record. Images are cells with `bytes`, or with a `path` in the image folder. The
folder in which a table lies is the `dataset` of rows that have none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neva.config.data_sources import paths_of
from neva.constants import IMAGE_PLACEHOLDER
from neva.data.index import (
    Arrays,
    IndexBuilder,
    RecordIndex,
    dataset_of,
    index_of,
    kept_arrays,
    open_index,
    sizes_and_times,
)
from neva.data.sources.conversation import CONVERSATIONS, IMAGES, SYSTEM, VIDEOS, parse_record
from neva.data.sources.source import MediaFile, Record
from neva.errors import ConfigError, DataError, SampleError, reason
from neva.formats.progress import bytes_bar
from neva.formats.stored_file import StoredFile
from neva.registry import SOURCES

TEXTS = ("user", "assistant")
READ = (*CONVERSATIONS, *VIDEOS, *SYSTEM)
"""Columns that say what a record is, beside its images."""
NO_IMAGE = {"bytes": None, "path": None}
"""A cell that says the same as null."""


class TableRecords:
    """The rows of tables, of which the index alone is in memory; a row is read with the row group that it is in.

    Args:
        path: what was asked for.
        files: the tables, in order.
        arrays: of the index.
        numbers: of the rows that are not excluded; None: all.
    """

    def __init__(
        self, path: Path, files: Sequence[Path], arrays: Arrays, numbers: NDArray[np.integer] | None
    ) -> None:
        self.path, self.files = path, list(files)
        self._arrays, self._numbers = arrays, numbers

    def __len__(self) -> int:
        return len(self._arrays["files"] if self._numbers is None else self._numbers)

    def record_index(self) -> RecordIndex:
        """Returns the index of the rows that are not excluded."""
        return index_of(self._arrays).of(self._numbers)

    def __getitem__(self, index: int) -> Record:
        return self._read(index)[0]

    def raw(self, index: int) -> dict[str, Any]:
        """Returns what is read of a row beside its images, as JSON can hold it."""
        return self._read(index)[1]

    def _read(self, index: int) -> tuple[Record, dict[str, Any]]:
        number = index if self._numbers is None else int(self._numbers[index])
        file = self.files[int(self._arrays["files"][number])]
        group, row = int(self._arrays["groups"][number]), int(self._arrays["rows"][number])
        name = _name(self.path, file)
        return _record(
            _group(file, group)[row], str(number), _subset(name), f"{name}, row group {group}, row {row}"
        )


class ParquetSource:
    """Reads `.parquet` files."""

    form = ".parquet tables (a file, a folder, or data/{000..099}.parquet)"

    def accepts(self, path: Path) -> bool:
        """Returns whether `path` is such a file, several, or a folder of some."""
        return path.suffix == ".parquet" or any(path.rglob("*.parquet"))

    def open(self, path: Path, datasets_exclude: Collection[str] = ()) -> TableRecords:
        """Returns the rows without those whose `dataset` is excluded.

        Raises:
            ConfigError: pyarrow is not installed.
            DataError: a file is no table, or there is no row.
        """
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else paths_of(str(path))
        size, listed = sizes_and_times(files)
        kept = partial(kept_arrays, path if path.exists() else files[0].parent, size, {"files": listed})
        return TableRecords(
            path, files, *open_index(path, "row", lambda: _scan(path, files, size), datasets_exclude, kept)
        )


SOURCES.register("parquet", ParquetSource())


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    """Yields an open table."""
    try:
        import pyarrow.parquet
        from pyarrow import ArrowException
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path} is a .parquet table, which needs pyarrow: pip install 'neva[parquet]'"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as table:
            yield table
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as a table ({reason(error)}); fetch it again") from error


@lru_cache(maxsize=1)
def _group(path: Path, group: int) -> list[dict[str, Any]]:
    """Returns the rows of a row group, the least that can be read of a table; the last is kept, in each worker."""
    with _table(path) as table:
        return table.read_row_group(group).to_pylist()


def _name(path: Path, file: Path) -> str:
    """Returns the name of a table in the folder that was asked for."""
    return file.relative_to(path).as_posix() if path.is_dir() else file.name


def _subset(name: str) -> str | None:
    """Returns the folder in which a table lies, for rows that name no `dataset`."""
    return name.rpartition("/")[0] or None


def _scan(path: Path, files: Sequence[Path], size: int) -> Arrays:
    """Reads all rows and returns the arrays of the index."""
    index = IndexBuilder({"files": "I", "groups": "I", "rows": "I"})
    contents = []
    with bytes_bar(size, "index of tables") as on_read:
        for number, file in enumerate(files):
            with _table(file) as table:
                contents.append(f"{_name(path, file)} {file.stat().st_size}")
                subset = _subset(_name(path, file))
                for group in range(table.num_row_groups):
                    for row, raw in enumerate(table.read_row_group(group).to_pylist()):
                        _add(index, raw, subset, files=number, groups=group, rows=row)
            on_read(file.stat().st_size)
    words = int(np.sum(index.arrays("")["words"], dtype=np.int64))
    return index.arrays(f"{len(files)} tables, {size} bytes, {words} words: {', '.join(contents[:3])}")


def _add(index: IndexBuilder, raw: Mapping[str, Any], subset: str | None, **place: int) -> None:
    try:
        record, named = _record(raw, "", subset, "")
        index.add_record(record, dataset_of(named), **place)
    except SampleError:
        index.add_record(None, dataset_of(raw) or subset, **place)


def _record(
    row: Mapping[str, Any], default_id: str, subset: str | None, place: str
) -> tuple[Record, dict[str, Any]]:
    """Returns the record of a row, and what is read of the row beside its images."""
    raw = {name: value for name, value in row.items() if value is not None and value != NO_IMAGE}
    try:
        cells = raw.get("images") or raw.get("image") or []
        images = [_image(cell, place) for cell in (cells if isinstance(cells, list) else [cells])]
        if isinstance(raw.get("texts"), list):
            raw |= {"conversations": _conversation(raw.pop("texts"), len(images))}
        raw |= dict.fromkeys(IMAGES) | {"image": []}
        record = parse_record(raw, default_id, place)  # its images are those that its turns name
        read = {key: raw[key] for key in READ if key in raw}
        return replace(record, images=images or record.images), read | {"dataset": dataset_of(raw) or subset}
    except SampleError as error:
        error.place = place
        raise


def _conversation(texts: list[Any], images: int) -> list[dict[str, Any]]:
    """Returns Cauldron's pairs as turns; its images stand before the first question."""
    turns = []
    for number, text in enumerate(texts):
        if not isinstance(text, Mapping) or not all(isinstance(text.get(side), str) for side in TEXTS):
            raise SampleError(f"texts must be a list of user and assistant, found {text!r:.80}")
        question = (f"{IMAGE_PLACEHOLDER}\n" * images if number == 0 else "") + text["user"]
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": text["assistant"]}]
    return turns


def _image(cell: Any, place: str) -> str | MediaFile:
    """Returns the image of a cell: its bytes as a file, or the name of a file."""
    if isinstance(cell, str):
        return cell
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    name = cell.get("path") if isinstance(cell, Mapping) else None
    if isinstance(content, bytes):
        return StoredFile(f"{place}/{name or 'image'}", lambda: content, len(content))
    if isinstance(name, str):
        return name
    raise SampleError(f"an image must be a cell with bytes or a path, found {type(cell).__name__}")
