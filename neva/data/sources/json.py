"""LLaVA-format conversations: a `.json` list or `.jsonl` lines."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neva.data.index import Arrays, IndexBuilder, RecordIndex, index_of, kept_arrays, open_index
from neva.data.sources.conversation import parse_record
from neva.data.sources.source import Record
from neva.data.sources.steerlm import with_placeholders
from neva.errors import SampleError
from neva.formats.json import json_line
from neva.formats.json_list import HashedFile, items_of, lines_of
from neva.formats.progress import bytes_bar
from neva.registry import SOURCES

UNITS = {True: "line", False: "record"}
"""What a record of `.jsonl`, and one of `.json`, is called."""
PLACES = {"starts": "q", "sizes": "I"}
"""Where a record's JSON text lies in the file, in bytes."""


class JsonRecords:
    """The records of one file, of which the index alone is in memory; one is read and parsed when it is asked for.

    Args:
        path: the file.
        arrays: of its index.
        numbers: of the records that are not excluded, in the file; None: all.
    """

    def __init__(self, path: Path, arrays: Arrays, numbers: NDArray[np.integer] | None) -> None:
        self.path = path
        self._arrays, self._numbers = arrays, numbers
        self._is_lines = is_jsonl(path)
        self._file: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._arrays["starts"] if self._numbers is None else self._numbers)

    def record_index(self) -> RecordIndex:
        """Returns the index of the records that are not excluded."""
        return index_of(self._arrays).of(self._numbers)

    def raw(self, index: int) -> Any:
        """Returns the JSON value, SteerLM's with `<image>`; SampleError when it is not JSON."""
        row = self._row(index)
        try:
            raw = json.loads(self._read(int(self._arrays["starts"][row]), int(self._arrays["sizes"][row])))
        except (ValueError, RecursionError) as error:
            broken = SampleError(f"not valid JSON: {error}")
            broken.place = self._place(row)
            raise broken from error
        return with_placeholders(raw) if self._is_lines else raw

    def __getitem__(self, index: int) -> Record:
        row = self._row(index)
        default_id = int(self._arrays["numbers"][row]) - 1 if self._is_lines else row
        return parse_record(self.raw(index), str(default_id), self._place(row))

    def copy(self, target: Path, indices: Sequence[int], suffix: str) -> None:
        """Writes some of the records as they stand in the file.

        Args:
            target: the new file.
            indices: of the records.
            suffix: `.json` or `.jsonl`; lines of the latter have no line breaks inside.
        """
        is_lines = suffix == ".jsonl"
        before, between, after = (b"", b"\n", b"\n") if is_lines else (b"[", b",\n", b"]\n")
        with target.open("wb") as file:
            for number, row in enumerate(map(self._row, indices)):
                text = self._read(int(self._arrays["starts"][row]), int(self._arrays["sizes"][row])).strip()
                if is_lines and b"\n" in text:
                    text = json_line(json.loads(text)).strip().encode()
                file.write((between if number else before) + text)
            file.write(after)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _row(self, index: int) -> int:
        """Returns the number of a record among all of the file."""
        return index if self._numbers is None else int(self._numbers[index])

    def _place(self, row: int) -> str:
        return f"{UNITS[self._is_lines]} {self._arrays['numbers'][row] if self._is_lines else row}"

    def _read(self, start: int, size: int) -> bytes:
        """Returns bytes of the file, which each process opens once."""
        process = os.getpid()
        if self._file is None or self._file[0] != process:
            self._file = process, os.open(self.path, os.O_RDONLY)
        return os.pread(self._file[1], size, start)


class JsonSource:
    """Reads `.json` and `.jsonl` files."""

    form = ".json (a list) or .jsonl (a record a line)"

    def accepts(self, path: Path) -> bool:
        """Returns whether `path` is such a file, by its name or by the bracket that it begins with."""
        return path.is_file() and (path.suffix.lower() in (".json", ".jsonl") or _begins_with_bracket(path))

    def open(self, path: Path, datasets_exclude: Collection[str] = ()) -> JsonRecords:
        """Returns the records without those whose `dataset` is excluded.

        Args:
            path: the file.
            datasets_exclude: names.

        Raises:
            DataError: the file holds none, is not UTF-8, or a `.json` file is no list.
        """
        size = path.stat().st_size
        kept = partial(kept_arrays, path, size, {})
        return JsonRecords(
            path, *open_index(path, "record", lambda: _scan(path, size), datasets_exclude, kept)
        )


SOURCES.register("json", JsonSource())


def is_jsonl(path: Path) -> bool:
    """Returns whether a file has a record a line."""
    return path.suffix.lower() == ".jsonl"


def _scan(path: Path, size: int) -> Arrays:
    """Reads the whole file once and returns the arrays of its index."""
    is_lines = is_jsonl(path)
    index = IndexBuilder({**PLACES, "numbers": "q"} if is_lines else PLACES)
    with path.open("rb") as stream, bytes_bar(size, f"index of {path.name}") as on_read:
        file = HashedFile(path, stream, on_read)
        for item in lines_of(file) if is_lines else items_of(file):
            number = {"numbers": item.number} if is_lines else {}
            value = with_placeholders(item.value) if is_lines else item.value
            index.add(value, starts=item.start, sizes=item.size, **number)
    return index.arrays(file.digest())


def _begins_with_bracket(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
