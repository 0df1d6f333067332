"""Names of the files of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neva.errors import CheckpointError, DataError
from neva.formats.json import decode_text, read_object, shown

MODEL_CONFIG = "config.json"
IMAGE_PROCESSOR_CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
VIDEO_PROCESSOR_CONFIG = "video_preprocessor_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
PARITY_REPORT = "parity.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file or, with `.index.json` behind the name, in several."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", TOKENIZER_CONFIG)
"""At least one of these makes a folder one of a tokenizer."""

COPIED_FILES = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
)
"""What a tokenizer may consist of, and the `generation_config.json` that names its end tokens."""

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""Role of a special token -> what LLaMA-type tokenizers call it."""


def index_of(weight_file: str) -> str:
    """Returns the name of the index of `weight_file`'s shards."""
    return f"{weight_file}.index.json"


def weight_map(index: Mapping[str, Any], name: str | Path) -> dict[str, str]:
    """Returns the file of each tensor, from the content of an index that was read from `name`.

    Raises:
        CheckpointError: it does not say that.
    """
    found = index.get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise CheckpointError(
            f"{name}: weight_map is {shown(found)}, expected a file name for each tensor; fetch the index again"
        )
    return found


def read_config(folder: str | Path) -> dict[str, Any]:
    """Returns the folder's `config.json`.

    Raises:
        CheckpointError: there is none, or it is no valid JSON object.
    """
    path = Path(folder) / MODEL_CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a Hugging Face model folder: it has no {MODEL_CONFIG}")
    return read_object(path)


def read_image_processor(folder: str | Path) -> dict[str, Any]:
    """Returns the settings of the folder's image processor.

    Raises:
        CheckpointError: there is none.
    """
    settings = image_processor_settings(folder)
    if settings is None:
        raise CheckpointError(
            f"{folder} has no image processor; expected a {IMAGE_PROCESSOR_CONFIG}, or a {PROCESSOR_CONFIG} that "
            "holds one"
        )
    return settings


def image_processor_settings(folder: str | Path) -> dict[str, Any] | None:
    """Returns the image processor's settings: `preprocessor_config.json`, or what transformers 5 puts elsewhere.

    Its `processor.save_pretrained` writes one file for the whole processor.
    """
    own, whole = Path(folder) / IMAGE_PROCESSOR_CONFIG, Path(folder) / PROCESSOR_CONFIG
    if own.is_file():
        return read_object(own)
    settings = read_object(whole).get("image_processor") if whole.is_file() else None
    if not isinstance(settings, dict | None):
        raise CheckpointError(f"{whole}: image_processor is {shown(settings)}, expected an object with keys")
    return settings


def tokenizer_files(folder: str | Path) -> dict[str, bytes]:
    """Returns the tokenizer's files of a folder, by name."""
    found = (Path(folder) / name for name in COPIED_FILES)
    return {path.name: path.read_bytes() for path in found if path.is_file()}


def read_chat_template(folder: str | None) -> str | None:
    """Returns the chat template of a tokenizer's folder, the one called default of several; None: it has none."""
    if folder is None or not Path(folder).is_dir():
        return None
    path = Path(folder) / CHAT_TEMPLATE
    if path.is_file():
        return decode_text(path.read_bytes(), path, DataError)
    for name in ("chat_template.json", TOKENIZER_CONFIG):
        path = Path(folder) / name
        found = read_object(path, DataError).get("chat_template") if path.is_file() else None
        if isinstance(found, list):  # of named ones
            found = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}.get(
                "default"
            )
        if isinstance(found, str):
            return found
    return None
