"""Tokenizer files on the way out: readable by transformers 4.45 to 5.x, with the tokens and templates a
recipe needs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from neva.config.derive import tokenizer_size
from neva.formats.hf_folder import write_json

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def tokenizer_files(folder: str | Path) -> list[Path]:
    """The tokenizer's files of a Hugging Face folder, and the `generation_config.json` that names its end
    tokens.
    """
    return [path for name in FILES if (path := Path(folder) / name).is_file()]


def check_vocabulary(folder: str | Path, vocab_size: int) -> None:
    """ValueError when the tokenizer of `folder` has an id without a row of its own in a vocabulary of
    `vocab_size`.
    """
    size = tokenizer_size(str(folder))
    if size is not None and size > vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer's highest id is {size - 1}, but the model has {vocab_size} vocabulary rows, so "
            "it would fall into the padding; use the tokenizer the model was trained with, or train with "
            f"model.vocab_size={size}"
        )


def copy_portable(source: str | Path, target: Path) -> None:
    """Copies the tokenizer's files, with a `tokenizer_class` that every transformers from 4.45 on knows."""
    for file in tokenizer_files(source):
        content = file.read_bytes()
        if file.name == "tokenizer_config.json":
            settings = json.loads(content)
            if settings.get("tokenizer_class") == "TokenizersBackend":  # transformers 5 alone knows this name
                settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
                settings.pop("backend", None)
                settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
            write_json(target / file.name, settings)
        else:
            (target / file.name).write_bytes(content)


def add_special_tokens(tokenizer: dict[str, Any], tokens: Sequence[str]) -> list[int]:
    """Adds special tokens to the content of a `tokenizer.json` and returns their ids; one that is there keeps
    its id.
    """
    vocabulary = tokenizer["model"]["vocab"]
    ids = (
        dict(vocabulary)
        if isinstance(vocabulary, dict)
        else {row[0]: index for index, row in enumerate(vocabulary)}
    )
    added = tokenizer.setdefault("added_tokens", [])
    ids |= {token["content"]: token["id"] for token in added}
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


def add_tokens_to_folder(folder: Path, tokens: Sequence[str]) -> list[int]:
    """Adds special tokens to the tokenizer.json in `folder`; returns one more than each one's id: the rows it
    needs.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no tokenizer.json; tokens can be added only to one")
    content = json.loads(file.read_text(encoding="utf-8"))
    ids = add_special_tokens(content, tokens)
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    return [number + 1 for number in ids]


def set_bos(tokenizer: dict[str, Any], bos: str | None, wanted: bool) -> None:
    """Makes the content of a `tokenizer.json` put `bos` first, or not, when it is asked for special
    tokens.
    """
    loaded = Tokenizer.from_str(json.dumps(tokenizer))
    bos_id = loaded.token_to_id(bos) if bos else None
    ids = loaded.encode("a").ids
    if bos is None or bos_id is None or (ids[:1] == [bos_id]) == wanted:
        return
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [sequence, {"Sequence": {"id": "B", "type_id": 0}}]
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, sequence] if wanted else [sequence],
        "pair": [first, *pair] if wanted else pair,
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}} if wanted else {},
    }


def write_fast_tokenizer(
    target: Path, tokenizer: Mapping[str, Any], roles: Mapping[str, str], template: str, max_length: int
) -> None:
    """Writes `tokenizer.json` and the files beside it for every transformers from 4.45 on.

    `roles` are the contents of `bos_token`, `eos_token` …. The chat template goes to all three places that
    one version or another reads: tokenizer_config.json, chat_template.json and chat_template.jinja.
    """
    (target / "tokenizer.json").write_text(
        json.dumps(tokenizer, ensure_ascii=False, indent=2), encoding="utf-8"
    )
    settings = {
        **roles,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "chat_template": template,
    }
    write_json(target / "tokenizer_config.json", settings)
    write_json(target / "special_tokens_map.json", roles)
    write_json(target / "chat_template.json", {"chat_template": template})
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def read_roles(folder: str | Path) -> dict[str, str]:
    """What the tokenizer of `folder` calls its special tokens: `bos_token`, `eos_token`, `unk_token`,
    `pad_token`.
    """
    path = Path(folder) / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = {role: settings.get(role) for role in ROLES}
    return {
        role: token["content"] if isinstance(token, dict) else token
        for role, token in found.items()
        if token is not None
    }


def token_ids(tokenizer: Tokenizer | None, roles: Mapping[str, str]) -> dict[str, int | None]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id` for a `config.json`; None where there is no such
    token.
    """
    names = ("bos_token", "eos_token", "pad_token")
    return {
        f"{name}_id": tokenizer.token_to_id(roles[name]) if tokenizer and name in roles else None
        for name in names
    }
