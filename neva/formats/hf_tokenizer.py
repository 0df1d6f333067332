"""Tokenizer files on the way out, for transformers 4.45 to 5.x, with the tokens and templates a recipe needs.

A tokenizer is a mapping from file names to contents here, or a folder with those files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from neva.errors import DataError, reason
from neva.formats.hf_files import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_JSON,
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    tokenizer_files,
)
from neva.formats.json import json_text, parse_object, read_object, shown, write_json
from neva.formats.vocabulary import base_ids, parse_tokenizer

JSON_FILES = {
    TOKENIZER_CONFIG,
    GENERATION_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
}


def copy_portable(source: str | Path, target: Path) -> None:
    """Copies the tokenizer's files, with a configuration that every transformers from 4.45 on reads.

    A tokenizer.json is loaded word for word, as it is here: the classes of LLaMA and others build another one.
    """
    files = tokenizer_files(source)
    for name, content in files.items():
        if name == TOKENIZER_CONFIG:
            settings = parse_object(content, Path(source) / name, DataError)
            if "tokenizer.json" in files:
                settings["tokenizer_class"] = "PreTrainedTokenizerFast"
                settings.pop("backend", None)  # of transformers 5 alone
                settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
            # of names and tokens in transformers 4
            if isinstance(settings.get("extra_special_tokens"), list):
                settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
            settings = {key: value for key, value in settings.items() if key not in SPECIAL_TOKENS or value}
            write_json(target / name, settings)
        else:
            (target / name).write_bytes(content)


def add_special_tokens(tokenizer: dict[str, Any], tokens: Sequence[str]) -> list[int]:
    """Adds special tokens to the content of a `tokenizer.json`; one that is there keeps its id.

    Returns:
        Their ids.
    """
    added = tokenizer.setdefault("added_tokens", [])
    ids = base_ids(tokenizer) | {token["content"]: token["id"] for token in added}
    special = {token["content"] for token in added if token["special"]}
    for token in tokens:
        ids.setdefault(token, max(ids.values()) + 1)
        if token in special:
            continue
        tokenizer["added_tokens"] = added = [entry for entry in added if entry["content"] != token]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": ids[token], "content": token, **flags, "special": True})
    added.sort(key=lambda token: token["id"])
    return [ids[token] for token in tokens]


def set_bos(tokenizer: dict[str, Any], bos: str | None, wanted: bool) -> None:
    """Makes the content of a `tokenizer.json` put `bos` first, or nothing, when it is asked for special tokens.

    One that it puts last would end a prompt before its answer.
    """
    loaded = Tokenizer.from_str(json.dumps(tokenizer))
    bos_id = loaded.token_to_id(bos) if bos and wanted else None
    first = [] if bos_id is None else [bos_id]
    if loaded.encode("a").ids == first + loaded.encode("a", add_special_tokens=False).ids:
        return
    begin = [{"SpecialToken": {"id": bos, "type_id": 0}} for _ in first]
    sequence, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*begin, sequence],
        "pair": [*begin, sequence, other],
        "special_tokens": {bos: {"id": bos, "ids": first, "tokens": [bos]}} if first else {},
    }


def write_fast_tokenizer(
    target: Path,
    tokenizer: Mapping[str, Any],
    roles: Mapping[str, str],
    template: str,
    max_length: int,
    processor: str,
) -> None:
    """Writes `tokenizer.json` and the files beside it for every transformers from 4.45 on.

    `roles` are the contents of `bos_token`, `eos_token` …, `processor` is the class that uses it. The chat template
    goes to all three places that one version or another reads: tokenizer_config.json, chat_template.json and
    chat_template.jinja.
    """
    (target / "tokenizer.json").write_text(json_text(tokenizer), encoding="utf-8")
    settings = {
        **roles,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "processor_class": processor,
        "chat_template": template,
    }
    write_json(target / TOKENIZER_CONFIG, settings)
    write_json(target / "special_tokens_map.json", roles)
    write_json(target / CHAT_TEMPLATE_JSON, {"chat_template": template})
    (target / CHAT_TEMPLATE).write_text(template, encoding="utf-8")


def read_roles(folder: str | Path) -> dict[str, str]:
    """Returns what the tokenizer of `folder` calls `bos_token`, `eos_token`, `unk_token` and `pad_token`.

    tokenizer_config.json says it, else special_tokens_map.json; an empty name is none.
    """
    roles: dict[str, str] = {}
    for name in ("special_tokens_map.json", TOKENIZER_CONFIG):
        path = Path(folder) / name
        settings = read_object(path, DataError) if path.is_file() else {}
        found = {role: _content(settings.get(role), role, path) for role in SPECIAL_TOKENS}
        roles |= {role: token for role, token in found.items() if token}
    return roles


def _content(token: Any, role: str, path: Path) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str | None):
        raise DataError(f"{path}: {role} is {shown(token)}, expected a text, or an object with its content")
    return content


def read_added_tokens(folder: str | Path) -> dict[int, dict[str, Any]]:
    """Returns the tokens that were added to the vocabulary of `folder`'s tokenizer.model: id -> content and flags.

    added_tokens.json says content and id, tokenizer_config.json (`added_tokens_decoder`) the flags too.
    """
    path, config = Path(folder) / "added_tokens.json", Path(folder) / TOKENIZER_CONFIG
    plain = read_object(path, DataError) if path.is_file() else {}
    if not all(type(number) is int for number in plain.values()):
        raise DataError(f"{path} is {shown(plain)}, expected the id of each token")
    added = {number: {"content": content, "special": True} for content, number in plain.items()}
    settings = read_object(config, DataError) if config.is_file() else {}
    flagged = settings.get("added_tokens_decoder") or {}
    if not isinstance(flagged, dict) or not all(
        re.fullmatch("[0-9]{1,9}", number)
        and isinstance(token, dict)
        and isinstance(token.get("content"), str)
        for number, token in flagged.items()
    ):
        raise DataError(
            f"{config}: added_tokens_decoder is {shown(flagged)}, expected the content of each id"
        )
    return added | {int(number): token for number, token in flagged.items()}


def load_backend(content: bytes, name: str | Path) -> Tokenizer:
    """Returns the tokenizer of a `tokenizer.json` that was read from `name`.

    Raises:
        DataError: it is none.
    """
    parse_tokenizer(content, name)
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the `tokenizers` package raises nothing more special
        raise DataError(f"{name} is not a tokenizer ({reason(error)}); fetch it again") from error


def check_tokenizer(files: Mapping[str, bytes], where: str | Path) -> None:
    """Raises DataError when a file of a tokenizer, by name, is not what it is called; `where` they lie is named."""
    for name in JSON_FILES & files.keys():
        parse_object(files[name], f"{name} of {where}", DataError)
    if "tokenizer.json" in files:
        load_backend(files["tokenizer.json"], f"tokenizer.json of {where}")


def token_ids(tokenizer: Tokenizer | None, roles: Mapping[str, str]) -> dict[str, int | None]:
    """Returns `bos_token_id`, `eos_token_id` and `pad_token_id` for a `config.json`; None: there is no such token."""
    names = ("bos_token", "eos_token", "pad_token")
    return {
        f"{name}_id": tokenizer.token_to_id(roles[name]) if tokenizer and name in roles else None
        for name in names
    }
