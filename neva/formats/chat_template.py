"""The chat template of a tokenizer, in whichever of its files it stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from neva.errors import DataError
from neva.formats.hf_files import CHAT_TEMPLATE, CHAT_TEMPLATE_JSON, TOKENIZER_CONFIG
from neva.formats.json import decode_text, parse_object
from neva.formats.nemo_header import nemo_tokenizer


def read_chat_template(source: str | Path | None) -> str | None:
    """Returns the chat template of a tokenizer, the one called default of several; None: it has none.

    `source` is its folder, the tokenizer.json there, or a `.nemo` that holds it.
    """
    if source is None or not Path(source).exists():
        return None
    files = _files(Path(source))
    if CHAT_TEMPLATE in files:
        return decode_text(files[CHAT_TEMPLATE], f"{CHAT_TEMPLATE} of {source}", DataError)
    for name in (CHAT_TEMPLATE_JSON, TOKENIZER_CONFIG):
        settings = parse_object(files[name], f"{name} of {source}", DataError) if name in files else {}
        found = settings.get("chat_template")
        if isinstance(found, list):  # of named ones
            found = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}.get(
                "default"
            )
        if isinstance(found, str):
            return found
    return None


def _files(source: Path) -> Mapping[str, bytes]:
    """Returns those files of a tokenizer, by name, in which its chat template may stand."""
    if (files := nemo_tokenizer(source)) is not None:
        return files
    folder = source if source.is_dir() else source.parent
    places = (folder / name for name in (CHAT_TEMPLATE, CHAT_TEMPLATE_JSON, TOKENIZER_CONFIG))
    return {path.name: path.read_bytes() for path in places if path.is_file()}
