"""JSON files, whose errors name the file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neva.errors import CheckpointError, UserError

LONGEST_SHOWN = 80
"""Characters of a value that a message shows."""

DEEPEST = 100
"""Levels of lists and objects in a file of a checkpoint; what reads them further calls itself at each."""


def refuse_utf_16(content: bytes, name: str | Path, error_kind: type[UserError] = CheckpointError) -> None:
    """Raises UserError, of `error_kind`, when a file that was read from `name` is UTF-16, with its mark or without."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]:
        raise error_kind(f"{name} is UTF-16, expected UTF-8; save it as such (iconv -f UTF-16 -t UTF-8)")


def decode_text(content: bytes, name: str | Path, error_kind: type[UserError] = CheckpointError) -> str:
    """Returns the text of a file that was read from `name`, without a byte order mark.

    Raises:
        UserError: of `error_kind`, when it is not UTF-8.
    """
    refuse_utf_16(content, name, error_kind)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise error_kind(
            f"{name} is not UTF-8 ({error.reason} at byte {error.start}); save it as such (for Chinese, perhaps: "
            "iconv -f GB18030 -t UTF-8)"
        ) from error


def half_character(text: str) -> str | None:
    """Returns the first half of a surrogate pair, which JSON can say and no file can hold, and where; None: none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start].encode('unicode_escape').decode()} at character {error.start}"
    return None


def read_json(path: str | Path, error_kind: type[UserError] = CheckpointError) -> Any:
    """Returns the content of a JSON file.

    Raises:
        UserError: of `error_kind`, when it is not valid JSON.
    """
    return parse_json(Path(path).read_bytes(), path, error_kind)


def parse_json(content: bytes, name: str | Path, error_kind: type[UserError] = CheckpointError) -> Any:
    """Returns the content of a JSON file that was read from `name`.

    Raises:
        UserError: of `error_kind`, when it is not valid JSON.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:  # syntax, bytes that are not UTF-8, depth
        raise error_kind(f"{name} is not valid JSON ({error}): fetch the checkpoint again") from error
    if b"\\u" in content and (half := half_character(json.dumps(found, ensure_ascii=False))) is not None:
        raise error_kind(
            f"{name} holds {half.split()[0]}, half a character, which no file can hold: remove it"
        )
    if _depth(found) > DEEPEST:
        raise error_kind(f"{name} is nested more than {DEEPEST} levels deep: fetch the checkpoint again")
    return found


def _depth(value: Any) -> int:
    """Returns how many lists and objects lie inside each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [below for item in level for below in (item.values() if isinstance(item, dict) else item)]
    return depth


def read_object(path: str | Path, error_kind: type[UserError] = CheckpointError) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        UserError: of `error_kind`, when it is not valid JSON or holds something else.
    """
    return parse_object(Path(path).read_bytes(), path, error_kind)


def parse_object(
    content: bytes, name: str | Path, error_kind: type[UserError] = CheckpointError
) -> dict[str, Any]:
    """Returns the object in the content of a JSON file that was read from `name`; see `read_object`."""
    found = parse_json(content, name, error_kind)
    if not isinstance(found, dict):
        raise error_kind(f"{name} holds a {type(found).__name__}, expected an object with keys")
    return found


def shown(value: object) -> str:
    """Returns a value of a JSON file as messages show it: one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def json_text(content: Any, sort_keys: bool = False) -> str:
    """Returns JSON as Hugging Face's tools write it: two spaces, no escapes."""
    return json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False)


def json_line(row: Mapping[str, Any] | list[Any]) -> str:
    """Returns a line of `.jsonl`, without escapes where UTF-8 can hold the text."""
    text = json.dumps(row, ensure_ascii=False)
    return (text if half_character(text) is None else json.dumps(row)) + "\n"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as transformers does: two spaces, sorted keys, a final newline."""
    path.write_text(json_text(content, sort_keys=True) + "\n", encoding="utf-8")
