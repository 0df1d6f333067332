"""Webdataset shards: tars whose members `0001.jpg`, `0001.json` are one sample, read in place and in any order."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neva.config.data_sources import paths_of
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
from neva.data.sources.parts import SampleForm, is_text, record_of
from neva.data.sources.source import Record
from neva.errors import DataError, SampleError
from neva.formats.progress import bytes_bar
from neva.formats.stored_file import StoredFile
from neva.formats.tar_members import stored_member, tar_members
from neva.registry import SOURCES

META = ".nv-meta"
"""What energon prepares is in this folder."""

COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz)$", re.IGNORECASE)
"""How the names of shards end that are not read."""

Member = tuple[str, int, int]
"""Name, offset and size in bytes."""


class ShardRecords:
    """The samples of shards, of which the index alone is in memory.

    Args:
        path: what was asked for.
        shards: the tars, in order.
        form: what the parts of a sample mean.
        arrays: of the index.
        numbers: of the samples that are not excluded; None: all.
    """

    def __init__(
        self,
        path: Path,
        shards: Sequence[Path],
        form: SampleForm,
        arrays: Arrays,
        numbers: NDArray[np.integer] | None,
    ) -> None:
        self.path, self.shards, self.form = path, list(shards), form
        self._arrays, self._numbers = arrays, numbers
        self._names = arrays["part_names"].tobytes().decode().split("\n")

    def __len__(self) -> int:
        return len(self._arrays["shards"] if self._numbers is None else self._numbers)

    def record_index(self) -> RecordIndex:
        """Returns the index of the samples that are not excluded."""
        return index_of(self._arrays).of(self._numbers)

    def __getitem__(self, index: int) -> Record:
        return self._read(index)[0]

    def raw(self, index: int) -> Any:
        """Returns the JSON value from which a record is made; its images are named by their numbers."""
        return self._read(index)[1]

    def _read(self, index: int) -> tuple[Record, Any]:
        row = index if self._numbers is None else int(self._numbers[index])
        shard = self.shards[int(self._arrays["shards"][row])]
        key = self._slice("keys", "key_ends", row).tobytes().decode()
        first, end = self._range("part_ends", row)
        parts = {}
        for place in range(first, end):
            part = self._names[int(self._arrays["part_kinds"][place])]
            start, size = int(self._arrays["part_starts"][place]), int(self._arrays["part_sizes"][place])
            parts[part] = stored_member(shard, f"{key}.{part}", start, size)
        return record_of(key.rpartition("/")[2], parts, self.form, f"{shard.name}, sample {key}")

    def _range(self, ends: str, row: int) -> tuple[int, int]:
        column = self._arrays[ends]
        return int(column[row - 1]) if row else 0, int(column[row])

    def _slice(self, values: str, ends: str, row: int) -> NDArray[Any]:
        first, end = self._range(ends, row)
        return self._arrays[values][first:end]


class WebdatasetSource:
    """Reads a `.tar`, a folder of them, or a path with braces."""

    form = ".tar shards of a webdataset (a file, a folder, or shards/{000..099}.tar)"

    def accepts(self, path: Path) -> bool:
        """Returns whether `path` is a tar, several, or a folder of some that energon has not prepared."""
        return _is_tar(path) or (
            path.is_dir() and any(map(_is_tar, path.iterdir())) and not (path / META).is_dir()
        )

    def open(self, path: Path, datasets_exclude: Collection[str] = ()) -> ShardRecords:
        """Returns the samples without those whose `dataset` is excluded.

        Raises:
            DataError: there are none, or some of the shards are compressed.
        """
        shards = paths_of(str(path))
        if path.is_dir():
            shards = sorted(filter(_is_tar, path.iterdir()), key=natural)
            if packed := next((file.name for file in path.iterdir() if COMPRESSED.search(file.name)), None):
                raise DataError(f"{path}: {packed} is a compressed tar beside others; unpack it (gunzip)")
        return open_shards(path, shards, SampleForm(), datasets_exclude)


SOURCES.register("webdataset", WebdatasetSource())


def _is_tar(path: Path) -> bool:
    return path.suffix.lower() == ".tar"


def natural(path: Path) -> list[tuple[int, str]]:
    """Returns a sort key by which shard 10 follows shard 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def open_shards(
    path: Path, shards: Sequence[Path], form: SampleForm, datasets_exclude: Collection[str]
) -> ShardRecords:
    """Opens shards with their index, which is made where there is none.

    Raises:
        DataError: a shard cannot be used, or there is no sample.
    """
    size, listed = sizes_and_times(shards)
    key = {"shards": listed, "form": [form.kind, dict(form.fields or {})]}
    kept = partial(kept_arrays, shards[0].parent if len(shards) > 1 else shards[0], size, key)
    return ShardRecords(
        path,
        shards,
        form,
        *open_index(path, "sample", lambda: _scan(shards, form, size), datasets_exclude, kept),
    )


def split_key(name: str) -> tuple[str, str]:
    """Returns key and part of a member's name: what stands before and behind the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    key, _, part = last.partition(".")
    return f"{folder}{slash}{key}", part.lower()


def _scan(shards: Sequence[Path], form: SampleForm, size: int) -> Arrays:
    """Reads the headers of all members, and the texts, and returns the arrays of the index."""
    index = IndexBuilder({"shards": "I", "part_ends": "q", "key_ends": "q"})
    columns = {"part_starts": array("q"), "part_sizes": array("q"), "part_kinds": array("H")}
    keys, names, digest = bytearray(), dict[str, int](), hashlib.sha256()
    with bytes_bar(size, "index of shards") as on_read:
        for number, shard in enumerate(shards):
            digest.update(f"{shard.name} {shard.stat().st_size}\n".encode())
            for key, members in _samples(shard, on_read):
                keys += key.encode()
                for name, start, length in members:
                    columns["part_starts"].append(start)
                    columns["part_sizes"].append(length)
                    columns["part_kinds"].append(names.setdefault(split_key(name)[1], len(names)))
                parts = {
                    split_key(name)[1]: _read_once(shard, name, at, length) for name, at, length in members
                }
                for part in filter(is_text, parts):
                    digest.update(parts[part].read_bytes())
                place = {"shards": number, "part_ends": len(columns["part_starts"]), "key_ends": len(keys)}
                _add(index, key, parts, form, place)
    content = f"{len(shards)} shards, {size} bytes, sha256 {digest.hexdigest()[:12]}"
    arrays = {name: np.frombuffer(column, dtype=column.typecode) for name, column in columns.items()}
    text = {"keys": bytes(keys), "part_names": "\n".join(names).encode()}
    blobs = {name: np.frombuffer(value, dtype=np.uint8) for name, value in text.items()}
    return {**index.arrays(content), **arrays, **blobs}


def _samples(shard: Path, on_read: Any) -> Iterator[tuple[str, list[Member]]]:
    """Yields key and members of each sample; a part that it has already begins another one.

    Hidden files and those without an ending are of none, as in webdataset.
    """
    members = (member for member in tar_members(shard, on_read) if member[0].rpartition("/")[2].find(".") > 0)
    for key, group in groupby(members, key=lambda member: split_key(member[0])[0]):
        sample: dict[str, Member] = {}
        for member in group:
            part = split_key(member[0])[1]
            if part in sample:
                yield key, list(sample.values())
                sample = {}
            sample[part] = member
        yield key, list(sample.values())


def _read_once(shard: Path, name: str, start: int, size: int) -> StoredFile:
    """Returns a member whose content is read when it is first asked for, and kept."""
    member = stored_member(shard, name, start, size)
    content: list[bytes] = []

    def read(member: StoredFile) -> bytes:
        if not content:
            content.append(member.read_bytes())
        return content[0]

    return StoredFile(member.place, partial(read, member), size)


def _add(
    index: IndexBuilder, key: str, parts: dict[str, StoredFile], form: SampleForm, place: dict[str, int]
) -> None:
    try:
        record, raw = record_of(key, parts, form, "")
        index.add_record(record, dataset_of(raw), **place)
    except SampleError:
        index.add_record(None, None, **place)
