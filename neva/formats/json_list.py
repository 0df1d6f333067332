"""The items of a `.json` list, found one after the other in bounded memory, and the lines of a `.jsonl` file."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from neva.errors import DataError
from neva.formats.json import refuse_utf_16

BLOCK = 1 << 22
"""Bytes read at a time."""
LONGEST = 1 << 28
"""Characters of an item; a list with a quote too few would otherwise be read whole."""
TORN = 16
"""An error so near the end of what has been read may be no more than a word, a number or an escape in two pieces."""
SPACE = " \t\n\r"

OnRead = Callable[[int], object]


@dataclass(frozen=True)
class Item:
    """One item of a list or one line, and where its JSON text lies in the file, in bytes."""

    start: int
    size: int
    number: int
    """Of a list's item, from 0; of a line, from 1."""
    value: Any
    """None where `error` says what is wrong."""
    error: ValueError | RecursionError | None = None


class HashedFile:
    """A file read once from its beginning to its end, with its hash."""

    def __init__(self, path: Path, stream: BinaryIO, on_read: OnRead) -> None:
        self.path, self._stream, self._on_read = path, stream, on_read
        self._sha256, self.size = hashlib.sha256(), 0

    def take(self, block: bytes) -> bytes:
        """Counts what has been read."""
        self._sha256.update(block)
        self.size += len(block)
        self._on_read(len(block))
        return block

    def read(self, size: int) -> bytes:
        """Returns the next bytes, none at the end."""
        return self.take(self._stream.read(size))

    def lines(self) -> Iterator[bytes]:
        """Yields the lines, each with its end."""
        return (self.take(line) for line in self._stream)

    def digest(self) -> str:
        """Returns what `neva.formats.digest.file_digest` would of what has been read."""
        return f"{self.size} bytes, sha256 {self._sha256.hexdigest()[:12]}"


def lines_of(file: HashedFile) -> Iterator[Item]:
    """Yields the lines that are not blank; one that is not JSON has an error.

    Raises:
        DataError: the file is UTF-16.
    """
    start = 0
    for number, line in enumerate(file.lines(), 1):
        text = line
        if number == 1:
            refuse_utf_16(line, file.path, DataError)
            text = line.removeprefix(codecs.BOM_UTF8)
        if text.strip():
            yield _line(start + len(line) - len(text), number, text)
        start += len(line)


def _line(start: int, number: int, text: bytes) -> Item:
    try:
        return Item(start, len(text), number, json.loads(text))
    except (ValueError, RecursionError) as error:
        return Item(start, len(text), number, None, error)


def items_of(file: HashedFile) -> Iterator[Item]:
    """Yields the items of the list that a file holds.

    Raises:
        DataError: it is not UTF-8, no list, not valid JSON, or goes on behind the list; with line and character.
    """
    window = _Window(file)
    window.expect("[")
    number = 0
    if window.next_character() != "]":
        while True:
            start = window.byte
            value = window.value()
            yield Item(start, window.byte - start, number, value)
            number += 1
            if window.next_character() == "]":
                break
            window.expect(",")
    window.expect("]")
    if window.next_character():
        raise window.error(
            f"goes on behind its list, at {window.place}: {window.shown}; expected one list: put all records into it"
        )


class _Window:
    """The part of a file's text that is looked at."""

    def __init__(self, file: HashedFile) -> None:
        self.file = file
        self.byte, self.character, self.line = 0, 0, 1
        """Where the window begins; a byte order mark is no character."""
        self._text, self._at, self._is_ascii = "", 0, True
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"character {self.character} (line {self.line})"

    @property
    def shown(self) -> str:
        """What stands there, for messages."""
        return repr(self._text[self._at : self._at + 20])

    def error(self, what: str) -> DataError:
        """Returns an error of the file."""
        return DataError(f"model.data.data_path: {self.file.path} {what}")

    def next_character(self) -> str:
        """Skips white space; returns what follows it, nothing at the end of the file."""
        while True:
            text, end = self._text, self._at
            while end < len(text) and text[end] in SPACE:
                end += 1
            self._advance(end)
            if end < len(text) or not self._more():
                return self._text[self._at : self._at + 1]

    def expect(self, character: str) -> None:
        """Steps over white space, the character and white space again; DataError for another one."""
        if self.next_character() != character:
            raise self.error(
                "must be a JSON list of records (or .jsonl, one record a line); "
                f"expected {character!r} at {self.place}, found {self.shown}"
            )
        self._advance(self._at + 1)
        self.next_character()

    def value(self) -> Any:
        """Returns the JSON value that begins here, and steps over it."""
        decode = json.JSONDecoder().raw_decode
        while True:
            try:
                value, end = decode(self._text, self._at)
            except (ValueError, RecursionError) as error:  # syntax, a number of too many digits, depth
                if self._is_torn(error) and self._more():
                    continue
                raise self.error(
                    f"is not valid JSON in the record at {self.place}: {self._what(error)}"
                ) from error
            if end + TORN < len(self._text) or not self._more():  # a number may go on behind the window
                self._advance(end)
                return value

    def _what(self, error: ValueError | RecursionError) -> str:
        """Returns what is wrong, and where in the file."""
        if not isinstance(error, json.JSONDecodeError):
            return str(error)
        passed = self._text[self._at : error.pos]
        line = self.line + passed.count("\n")
        return f"{error.msg} at character {self.character + len(passed)} (line {line})"

    def _is_torn(self, error: ValueError | RecursionError) -> bool:
        """Returns whether the rest of the file may mend the error."""
        if not isinstance(error, json.JSONDecodeError) or len(self._text) > LONGEST:
            return False
        return error.pos > len(self._text) - TORN or error.msg.startswith("Unterminated string")

    def _more(self) -> bool:
        """Reads on, twice as much where nothing was stepped over; returns whether there was something."""
        block = self.file.read(
            max(BLOCK, 0 if self._at else len(self._text), 64 if self.file.size == 0 else 0)
        )
        pending = len(self._decoder.getstate()[0])
        first = self.file.size - len(block) - pending
        if first == 0:
            refuse_utf_16(block, self.file.path, DataError)
            if block.startswith(codecs.BOM_UTF8):
                block, self.byte = block[3:], 3
        try:
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.file.path} is not UTF-8 ({error.reason} at byte {first + error.start}); save it as such (for "
                "Chinese, perhaps: iconv -f GB18030 -t UTF-8)"
            ) from error
        if block:
            self._text, self._at = self._text[self._at :] + text, 0
            self._is_ascii = self._text.isascii()
        return bool(block)

    def _advance(self, end: int) -> None:
        passed = self._text[self._at : end]
        self.byte += len(passed) if self._is_ascii else len(passed.encode("utf-8", "surrogatepass"))
        self.character += len(passed)
        self.line += passed.count("\n")
        self._at = end
