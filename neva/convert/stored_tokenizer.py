"""The files of a tokenizer as a `.nemo` keeps them: with a tokenizer.json and the names of its special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neva.errors import DataError
from neva.formats.hf_files import SPECIAL_TOKENS, TOKENIZER_CONFIG, tokenizer_files
from neva.formats.hf_tokenizer import check_tokenizer, set_bos
from neva.formats.json import json_text, parse_object
from neva.formats.vocabulary import parse_tokenizer

LIMITS = ("truncation", "padding")
"""Keys of a tokenizer.json under which it keeps how it was last used."""


def stored_tokenizer(folder: Path) -> dict[str, bytes]:
    """Returns the tokenizer's files of a folder, by name; none where it has none.

    A folder with a tokenizer.model alone, as Vicuna and the original LLaVA are published, gets what it lacks. A
    tokenizer.json that cuts or fills texts, as it was last used, does so no more.

    Raises:
        DataError: its files cannot be read.
    """
    files = tokenizer_files(folder)
    check_tokenizer(files, folder)
    if "tokenizer.json" in files:
        content = parse_tokenizer(files["tokenizer.json"], folder / "tokenizer.json")
        if any(content.get(limit) for limit in LIMITS):
            files["tokenizer.json"] = json_text(content | dict.fromkeys(LIMITS)).encode()
    is_complete = "tokenizer.json" in files and TOKENIZER_CONFIG in files
    if is_complete or not {"tokenizer.json", "tokenizer.model", "vocab.json"} & files.keys():
        return files
    from neva.data.tokenizer import from_folder

    tokenizer = from_folder(folder)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if TOKENIZER_CONFIG in files:
        settings = parse_object(files[TOKENIZER_CONFIG], folder / TOKENIZER_CONFIG, DataError)
    if "tokenizer.json" not in files:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        if "tokenizer.model" in files:  # LLaMA's own class puts the first token unless it is told not to
            set_bos(content, tokenizer.bos_token, wanted=settings.get("add_bos_token", True) is not False)
        files["tokenizer.json"] = json_text(content).encode()
    roles = {role: getattr(tokenizer, role) for role in SPECIAL_TOKENS}
    settings |= {role: token for role, token in roles.items() if token and not settings.get(role)}
    return {**files, TOKENIZER_CONFIG: json_text(settings).encode()}
