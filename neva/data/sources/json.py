"""LLaVA-format conversations: a `.json` list or `.jsonl` lines."""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neva.data.sources.conversation import parse_record
from neva.data.sources.source import Record
from neva.errors import DataError, SampleError
from neva.formats.json import decode_text, refuse_utf_16
from neva.registry import SOURCES

logger = logging.getLogger(__name__)

SPACE = re.compile(r"[ \t\n\r]*")
FIRST = {"line": 1, "record": 0}
"""What the first one of a file is called."""


class JsonRecords:
    """The records of one file as one block of JSON text, parsed one at a time.

    Worker processes share the block: a list of Python objects would be copied into each of them page by page as its
    reference counts are touched.

    Args:
        path: the file.
        items: number of each record in the file, and its JSON text.
        unit: what the number counts: `line` from 1, `record` from 0.
    """

    def __init__(self, path: Path, items: Iterable[tuple[int, bytes]], unit: str) -> None:
        self.path = path
        self.unit = unit
        kept = list(items)
        self._text = b"".join(text for _, text in kept)
        self._ends = np.cumsum([len(text) for _, text in kept], dtype=np.int64)
        self._numbers = np.array([number for number, _ in kept], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def raw(self, index: int) -> Any:
        """Returns the parsed JSON value; SampleError when it is not JSON."""
        start = 0 if index == 0 else self._ends[index - 1]
        try:
            return json.loads(self._text[start : self._ends[index]])
        except (ValueError, RecursionError) as error:
            broken = SampleError(f"not valid JSON: {error}")
            broken.place = self._place(index)
            raise broken from error

    def __getitem__(self, index: int) -> Record:
        number = int(self._numbers[index])
        return parse_record(self.raw(index), str(number - FIRST[self.unit]), self._place(index))

    def _place(self, index: int) -> str:
        return f"{self.unit} {self._numbers[index]}"


class JsonSource:
    """Reads `.json` and `.jsonl` files."""

    form = ".json (a list) or .jsonl (a record a line)"

    def accepts(self, path: Path) -> bool:
        """Returns whether `path` is such a file, by its name or by the bracket that it begins with."""
        return path.is_file() and (path.suffix.lower() in (".json", ".jsonl") or _begins_with_bracket(path))

    def open(self, path: Path, datasets_exclude: Collection[str] = ()) -> JsonRecords:
        """Returns the records without those whose `dataset` is excluded.

        Raises:
            DataError: the file holds none, is not UTF-8, or a `.json` file is no list.
        """
        is_lines = path.suffix.lower() == ".jsonl"
        items = _lines(path) if is_lines else enumerate(_list_items(path))
        if datasets_exclude:
            items = _without(items, datasets_exclude)
        records = JsonRecords(path, items, "line" if is_lines else "record")
        if len(records) == 0:
            raise DataError(
                f"model.data.data_path: {path} holds no record (datasets_exclude={list(datasets_exclude)})"
            )
        return records


SOURCES.register("json", JsonSource())


def _begins_with_bracket(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _list_items(path: Path) -> Iterator[bytes]:
    """Yields the JSON text of each item of the list in `path`."""
    text = decode_text(path.read_bytes(), path, DataError)
    decode = json.JSONDecoder().raw_decode
    position = _skip(text, 0, "[", path)
    if text[position : position + 1] == "]":
        _refuse_more(text, position + 1, path)
        return
    while True:
        try:
            _, end = decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"model.data.data_path: {path} is not valid JSON in the record at character {position}: {error}"
            ) from error
        yield text[position:end].encode()
        rest = _skip(text, end, "", path)
        if text[rest : rest + 1] == "]":
            _refuse_more(text, rest + 1, path)
            return
        position = _skip(text, rest, ",", path)


def _skip(text: str, position: int, expected: str, path: Path) -> int:
    """Returns the position after white space, `expected` and white space again."""
    position = _end_of_space(text, position)
    if not text.startswith(expected, position):
        raise DataError(
            f"model.data.data_path: {path} must be a JSON list of records (or .jsonl, one record a line); "
            f"expected {expected!r} at character {position}, found {text[position : position + 20]!r}"
        )
    return _end_of_space(text, position + len(expected))


def _end_of_space(text: str, position: int) -> int:
    return SPACE.match(text, position).end()  # type: ignore[union-attr]  # matches the empty string too


def _refuse_more(text: str, position: int, path: Path) -> None:
    position = _end_of_space(text, position)
    if position < len(text):
        raise DataError(
            f"model.data.data_path: {path} goes on behind its list, at character {position}: "
            f"{text[position : position + 20]!r}; expected one list: put all records into it"
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields number and text of each line that is not blank."""
    content = path.read_bytes()
    refuse_utf_16(content, path, DataError)
    content = content.removeprefix(codecs.BOM_UTF8)
    return ((number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip())


def _without(
    items: Iterable[tuple[int, bytes]], datasets_exclude: Collection[str]
) -> Iterator[tuple[int, bytes]]:
    """Leaves records of the excluded data sets out; one that is not JSON stays, to be answered for when it is read."""
    counts: Counter[str] = Counter()
    for number, text in items:
        dataset = _dataset_of(text)
        counts[str(dataset)] += 1
        if dataset not in datasets_exclude:
            yield number, text
    logger.info(
        "records by dataset: %s; left out: %s",
        dict(counts),
        ", ".join(sorted(set(datasets_exclude) & counts.keys())),
    )


def _dataset_of(text: bytes) -> Any:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return None
    dataset = raw.get("dataset") if isinstance(raw, Mapping) else None
    return dataset if isinstance(dataset, str) else None
