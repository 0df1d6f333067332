"""How many ids a tokenizer has, read from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neva.errors import DataError
from neva.formats.json import parse_json
from neva.formats.nemo_header import nemo_tokenizer


def base_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Returns token -> id of the content of a `tokenizer.json`, without the tokens that were added to it."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    return {row[0]: number for number, row in enumerate(vocabulary)}


def tokenizer_size(source: str | Path | None) -> int | None:
    """Returns one more than the highest id in `tokenizer.json` of a folder or `.nemo`; None without that file."""
    content = _tokenizer_json(source)
    if content is None:
        return None
    tokenizer = parse_json(content, f"tokenizer.json of {source}", DataError)
    added = (token["id"] for token in tokenizer.get("added_tokens", []))
    return 1 + max([*base_ids(tokenizer).values(), *added])


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
