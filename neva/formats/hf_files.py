"""Names of the files of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neva.errors import CheckpointError
from neva.formats.json import read_object, shown

MODEL_CONFIG = "config.json"
IMAGE_PROCESSOR_CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
VIDEO_PROCESSOR_CONFIG = "video_preprocessor_config.json"
CHAT_TEMPLATE, CHAT_TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"
PARITY_REPORT = "parity.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Of a folder of peft, as it is written."""
ADAPTER_FILES = (ADAPTER_WEIGHTS, "adapter_model.bin")
"""The weights of one, the first of these."""
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


def weights_file(folder: Path) -> Path | None:
    """Returns the file of weights that counts in a folder, or the index of several; None: there is neither.

    The order is transformers', whose `save_pretrained` leaves the index of an earlier save beside a single file.
    """
    names = (each for name in WEIGHT_FILES for each in (name, index_of(name)))
    return next((path for path in map(folder.joinpath, names) if path.is_file()), None)


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
    """Returns the image processor's settings: what transformers 5 writes, else `preprocessor_config.json`.

    Its `processor.save_pretrained` writes one file for the whole processor, beside the other of an earlier save.
    """
    own, whole = Path(folder) / IMAGE_PROCESSOR_CONFIG, Path(folder) / PROCESSOR_CONFIG
    settings = read_object(whole).get("image_processor") if whole.is_file() else None
    if not isinstance(settings, dict | None):
        raise CheckpointError(f"{whole}: image_processor is {shown(settings)}, expected an object with keys")
    if settings is None and own.is_file():
        return read_object(own)
    return settings


def tokenizer_files(folder: str | Path) -> dict[str, bytes]:
    """Returns the tokenizer's files of a folder, by name."""
    found = (Path(folder) / name for name in COPIED_FILES)
    return {path.name: path.read_bytes() for path in found if path.is_file()}
