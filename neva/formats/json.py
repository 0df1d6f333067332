"""JSON files, whose errors name the file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neva.errors import CheckpointError, UserError


def refuse_utf_16(content: bytes, name: str | Path, error_kind: type[UserError] = CheckpointError) -> None:
    """Raises UserError, of `error_kind`, when a file that was read from `name` is UTF-16, with its mark or without."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:64]:
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
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # syntax, bytes that are not UTF-8, depth
        raise error_kind(f"{name} is not valid JSON ({error}): fetch the checkpoint again") from error


def json_text(content: Any, sort_keys: bool = False) -> str:
    """Returns JSON as Hugging Face's tools write it: two spaces, no escapes."""
    return json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as transformers does: two spaces, sorted keys, a final newline."""
    path.write_text(json_text(content, sort_keys=True) + "\n", encoding="utf-8")
