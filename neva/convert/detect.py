"""What a source holds, and which module of `readers` reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neva.constants import ADAPTERS as PART_OF_ADAPTERS
from neva.constants import part_of
from neva.errors import CheckpointError
from neva.families.naming import IDEFICS2, LLAVA_TYPES
from neva.formats.atomic_write import check_source
from neva.formats.hf_files import ADAPTER_CONFIG, read_config
from neva.formats.nemo_header import is_nemo, is_nemo1, nemo_config, nemo_members, tensor_names


@dataclass(frozen=True)
class SourceKind:
    """A kind of source.

    Attributes:
        words: what messages call it.
        reader: module of `neva.convert.readers`, whose `read(source, options)` returns the model.
        has_tower: whether the model is a LLaVA model, not a language model alone.
        recognizes: whether a folder's `config.json` is one of this kind.
    """

    words: str
    reader: str
    has_tower: bool = True
    recognizes: Callable[[Mapping[str, Any]], bool] = lambda config: False


TEXT = SourceKind("language model", "text", has_tower=False)
PARTS = SourceKind("language model", "parts")
NEMO = SourceKind("LLaVA model", "nemo")
ADAPTERS = SourceKind("adapter of a LLaVA model", "nemo")
PEFT = SourceKind("adapter in a peft folder", "peft")
NEMO1 = SourceKind("NeVA model of NeMo 1", "nemo1")

FOLDERS = (
    SourceKind(
        "LLaVA model in the original layout",
        "llava_original",
        recognizes=lambda config: bool(config.get("mm_vision_tower")),
    ),
    SourceKind(
        "LLaVA model in llava-hf layout",
        "llava_hf",
        recognizes=lambda config: config.get("model_type") in LLAVA_TYPES,
    ),
    SourceKind(
        "Idefics2 model",
        "idefics2",
        recognizes=lambda config: config.get("model_type") == IDEFICS2.model_type,
    ),
)
"""Layouts of folders with a tower: the first that recognizes a folder reads it."""

OTHER_SENSES = ("vision", "visual", "image", "video", "audio", "speech", "mm_", "perceiver", "resampler")
"""What the keys of a `config.json` contain that describe parts which no language model has."""


def detect(source: Path, adds_tower: bool = False) -> SourceKind:
    """Returns what `source` holds.

    Args:
        source: a `.nemo`, the folder of an extracted one, or a Hugging Face folder.
        adds_tower: a language model becomes a LLaVA model with a tower of another folder.

    Raises:
        CheckpointError: `source` is none of these.
    """
    check_source(source)
    if is_nemo1(source):
        return NEMO1
    if is_nemo(source):
        nemo_members(source)  # refuses what is incomplete
        is_llava = "mm_cfg" in (nemo_config(source) or {})
        if any(part_of(name) == PART_OF_ADAPTERS for name in tensor_names(source)):
            return ADAPTERS
        # a tower is added to folders alone: the reader refuses
        return NEMO if is_llava or adds_tower else TEXT
    if (source / ADAPTER_CONFIG).is_file():
        return PEFT
    config = read_config(source)
    kind = next((kind for kind in FOLDERS if kind.recognizes(config)), TEXT)
    if kind is TEXT:
        _refuse_other_senses(source, config)
    return PARTS if kind is TEXT and adds_tower else kind


def _refuse_other_senses(source: Path, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a model that would be read as a language model alone, without its other parts."""
    keys = [
        key for key, value in config.items() if value and any(sense in key.lower() for sense in OTHER_SENSES)
    ]
    if keys:
        raise CheckpointError(
            f"{source} is a {config.get('model_type')!r} model with more than a language model "
            f"({', '.join(keys[:4])}); expected a language model, a llava-hf folder (model_type 'llava', "
            "'llava_next' or 'llava_onevision'), an Idefics2 or one in the original LLaVA layout"
        )
