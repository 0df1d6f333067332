"""How many ids a tokenizer has, read from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neva.errors import DataError
from neva.formats.json import parse_object, shown
from neva.formats.nemo_header import nemo_tokenizer


def base_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Returns token -> id of the content of a `tokenizer.json`, without the tokens that were added to it."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    return {row[0]: number for number, row in enumerate(vocabulary)}


def parse_tokenizer(content: bytes, name: str | Path) -> dict[str, Any]:
    """Returns the content of a `tokenizer.json` that was read from `name`.

    Raises:
        DataError: it is none: no JSON, or without a vocabulary and added tokens that have ids.
    """
    found = parse_object(content, name, DataError)
    model = found.get("model")
    if not isinstance(model, dict) or not _has_ids(model.get("vocab")):
        raise DataError(f"{name} has no vocabulary with an id for each token; fetch the tokenizer again")
    added = found.setdefault("added_tokens", [])
    if not isinstance(added, list) or not all(_is_added_token(token) for token in added):
        raise DataError(
            f"{name}: added_tokens is {shown(added)}, expected a list of objects with id and content; fetch "
            "the tokenizer again"
        )
    return found


def _has_ids(vocabulary: Any) -> bool:
    if isinstance(vocabulary, dict):
        return bool(vocabulary) and all(type(number) is int and number >= 0 for number in vocabulary.values())
    return isinstance(vocabulary, list) and all(
        isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in vocabulary
    )


def _is_added_token(token: Any) -> bool:
    return (
        isinstance(token, dict)
        and type(token.get("id")) is int
        and token["id"] >= 0
        and isinstance(token.get("content"), str)
        and isinstance(token.setdefault("special", False), bool)
    )


def tokenizer_size(source: str | Path | None) -> int | None:
    """Returns one more than the highest id in `tokenizer.json` of a folder or `.nemo`; None without that file."""
    content = _tokenizer_json(source)
    if content is None:
        return None
    tokenizer = parse_tokenizer(content, f"tokenizer.json of {source}")
    added = (token["id"] for token in tokenizer["added_tokens"])
    return 1 + max([*base_ids(tokenizer).values(), *added], default=-1)


def check_vocabulary(folder: str | Path, vocab_size: int) -> None:
    """Compares the tokenizer of `folder` with a vocabulary of `vocab_size` rows.

    Raises:
        DataError: it has an id without a row of its own.
    """
    size = tokenizer_size(folder)
    if size is not None and size > vocab_size:
        raise DataError(
            f"{folder}: the tokenizer's highest id is {size - 1}, but the model has {vocab_size} vocabulary rows, so "
            "it would fall into the padding; use the tokenizer the model was trained with, or train with "
            f"model.vocab_size={size}"
        )


def _tokenizer_json(source: str | Path | None) -> bytes | None:
    path = Path(source or "")
    path = path if path.suffix == ".json" else path / "tokenizer.json"
    if path.is_file():
        return path.read_bytes()
    return (nemo_tokenizer(source) or {}).get("tokenizer.json")
