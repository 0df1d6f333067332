"""LLaVA-format conversations: a `.json` list or `.jsonl` lines."""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neva.data.sources.source import Record
from neva.errors import DataError, SampleError
from neva.registry import SOURCES
from neva.templates.template import Turn

logger = logging.getLogger(__name__)

ROLES: dict[str, Literal["human", "gpt"]] = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
}

SPACE = re.compile(r"[ \t\n\r]*")


class JsonRecords:
    """The records of one file as one block of JSON text, parsed one at a time.

    Worker processes share the block: a list of Python objects would be copied into each of them page by page as its
    reference counts are touched.
    """

    def __init__(self, path: Path, lines: Iterable[bytes]) -> None:
        self.path = path
        kept = list(lines)
        self._text = b"".join(kept)
        self._ends = np.cumsum([len(line) for line in kept], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def raw(self, index: int) -> Any:
        """Returns the parsed JSON value; SampleError when it is not JSON."""
        start = 0 if index == 0 else self._ends[index - 1]
        try:
            return json.loads(self._text[start : self._ends[index]])
        except ValueError as error:
            raise SampleError(f"not valid JSON: {error}") from error

    def __getitem__(self, index: int) -> Record:
        return parse_record(self.raw(index), default_id=str(index))


class JsonSource:
    """Reads `.json` and `.jsonl` files."""

    form = ".json (a list) or .jsonl (a record a line)"

    def accepts(self, path: Path) -> bool:
        """Returns whether `path` is such a file, by its name or by the bracket that it begins with."""
        return path.is_file() and (path.suffix.lower() in (".json", ".jsonl") or _begins_with_bracket(path))

    def open(self, path: Path, datasets_exclude: Collection[str] = ()) -> JsonRecords:
        """Returns the records without those whose `dataset` is excluded.

        Raises:
            DataError: the file holds none, or a `.json` file is no list.
        """
        if path.suffix.lower() == ".jsonl":
            lines: Iterable[bytes] = (line for line in path.read_bytes().splitlines() if line.strip())
        else:
            lines = _list_items(path)
        if datasets_exclude:
            lines = _without(lines, datasets_exclude)
        records = JsonRecords(path, lines)
        if len(records) == 0:
            raise DataError(
                f"model.data.data_path: {path} holds no record (datasets_exclude={list(datasets_exclude)})"
            )
        return records


SOURCES.register("json", JsonSource())


def parse_record(raw: Any, default_id: str) -> Record:
    """Returns a record from `{id, image, conversations: [{from, value}]}`.

    The spelling `{messages: [{role, content}], images}` is read too; a first turn of role system becomes the system
    prompt.

    Raises:
        SampleError: something is missing or of the wrong type.
    """
    if not isinstance(raw, Mapping):
        raise SampleError(f"a record must be an object with conversations, found {type(raw).__name__}")
    if raw.get("video"):
        raise SampleError("the record has a video; only images are read")
    conversation = raw.get("conversations", raw.get("messages"))
    if not isinstance(conversation, list) or not conversation:
        raise SampleError(f"conversations must be a list of turns, found {conversation!r:.80}")
    system = raw.get("system")
    first = conversation[0]
    if isinstance(first, Mapping) and first.get("from", first.get("role")) == "system":
        system = first.get("value", first.get("content"))
        conversation = conversation[1:]
    return Record(
        id=str(raw.get("id", default_id)),
        turns=[_turn(turn) for turn in conversation],
        images=_image_names(raw.get("image", raw.get("images"))),
        system=system,
    )


def _turn(raw: Any) -> Turn:
    if not isinstance(raw, Mapping):
        raise SampleError(f"a turn must be an object with from and value, found {raw!r:.80}")
    role = raw.get("from", raw.get("role"))
    text = raw.get("value", raw.get("content"))
    if role not in ROLES:
        raise SampleError(f"a turn is from {role!r}, expected one of {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise SampleError(f"the text of a {role} turn must be a string, found {text!r:.80}")
    return Turn(ROLES[role], text)


def _image_names(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not names:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise SampleError(f"image must be a file name or a list of file names, found {value!r:.80}")
    return names


def _begins_with_bracket(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _list_items(path: Path) -> Iterator[bytes]:
    """Yields the JSON text of each item of the list in `path`."""
    text = path.read_text(encoding="utf-8-sig")
    decode = json.JSONDecoder().raw_decode
    position = _skip(text, 0, "[", path)
    if text[position : position + 1] == "]":
        return
    while True:
        try:
            _, end = decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(f"model.data.data_path: {path} is not valid JSON: {error}") from error
        yield text[position:end].encode()
        rest = _skip(text, end, "", path)
        if text[rest : rest + 1] == "]":
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


def _without(lines: Iterable[bytes], datasets_exclude: Collection[str]) -> Iterator[bytes]:
    counts: Counter[str] = Counter()
    for line in lines:
        raw = json.loads(line)
        dataset = raw.get("dataset") if isinstance(raw, Mapping) else None
        counts[str(dataset)] += 1
        if dataset not in datasets_exclude:
            yield line
    logger.info(
        "records by dataset: %s; left out: %s",
        dict(counts),
        ", ".join(sorted(set(datasets_exclude) & counts.keys())),
    )
