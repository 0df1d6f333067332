"""Parts of a model as native tensors, read from Hugging Face folders or `.nemo` files when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.connector import projector_table
from neva.families.hugging_face import missing_prefix
from neva.families.language import language_prefixes, language_table
from neva.families.naming import (
    IDEFICS2,
    LANGUAGE,
    LLAVA_HF,
    LLAVA_ORIGINAL,
    SECOND,
    TEXT,
    TOWER,
    VISION_MODEL,
    HFNaming,
    tower_prefix,
)
from neva.families.vision import vision_family
from neva.families.vision_table import POOLING, tower_shapes, tower_table
from neva.formats.hf_folder import FolderWeights
from neva.formats.nemo import open_nemo
from neva.formats.nemo_header import is_nemo
from neva.weights.experts import ExpertsOneByOne
from neva.weights.lazy import Chained, Converted, Filtered, Renamed


def language_weights(source: str | Path, language: LanguageConfig) -> Mapping[str, Tensor]:
    """Returns the tensors of a language model, without vocabulary padding.

    Args:
        source: a Hugging Face folder (text or LLaVA), or a `.nemo` that holds a language model.
        language: its sizes.

    Raises:
        CheckpointError: names that do not fit; a tensor whose shape does not fit raises when it is read.
    """
    if is_nemo(source):
        return Filtered(open_nemo(source).weights, LANGUAGE)
    weights = folder_weights(source)
    naming = language_naming(weights)
    table = language_table(replace(language, padded_vocab_size=language.vocab_size), naming)
    return Converted(table, language_part(weights, naming, language), source)


def tower_weights(source: str | Path, vision: VisionConfig) -> Mapping[str, Tensor]:
    """Returns the tensors of a vision tower.

    What no hidden state depends on may be missing: SigLIP's pooling head is left out then, and what other towers
    always have is zeros.

    Args:
        source: a Hugging Face folder (CLIPModel, CLIPVisionModel, SigLIP, LLaVA …) or a `.nemo`.
        vision: its sizes.

    Raises:
        CheckpointError: names that do not fit; a tensor whose shape does not fit raises when it is read.
    """
    if is_nemo(source):
        return Filtered(open_nemo(source).weights, TOWER)
    weights, family = folder_weights(source), vision_family(vision.model_type)
    shapes, names = tower_shapes(vision, pooling_head=True), family.file_names(vision)
    first = next(iter(shapes))
    prefix = tower_prefix(weights, names.get(first, first))
    if not any(prefix + name in weights for name in names.values()):
        names = {}  # a file that has the names of transformers' memory
    lacking = {
        name: shape
        for name, shape in shapes.items()
        if name.startswith(family.unused) and prefix + names.get(name, name) not in weights
    }
    shapes = {name: shape for name, shape in shapes.items() if name not in lacking}
    # what a bare CLIPModel has beside its tower is told apart by name
    stored = weights if prefix in ("", VISION_MODEL) else Filtered(weights, prefix)
    found = Converted(tower_table(shapes, prefix, names), stored, source)
    if all(name.startswith(POOLING) for name in lacking):
        return found
    dtype = found[TOWER + first].dtype
    return Chained(found, {TOWER + name: torch.zeros(shape, dtype=dtype) for name, shape in lacking.items()})


def second_tower_weights(source: str | Path, vision: VisionConfig) -> Mapping[str, Tensor]:
    """Returns the tensors of a tower as those of a second one; see `tower_weights`."""
    weights = tower_weights(source, vision)
    return Renamed(weights, {SECOND + name.removeprefix(TOWER): name for name in weights})


def projector_weights(
    weights: Mapping[str, Tensor],
    kind: str,
    vision: VisionConfig,
    language: LanguageConfig,
    layout: HFNaming,
    where: str | Path,
) -> Mapping[str, Tensor]:
    """Returns the tensors of a projector among `weights` in `layout`; messages name `where` they lie."""
    table = projector_table(kind, vision.feature_size, language.hidden_size, layout)
    prefixes = (layout.projector, *([layout.newline] if layout.newline else []))
    return Converted(table, Filtered(weights, *prefixes), where)


def folder_weights(folder: str | Path) -> Mapping[str, Tensor]:
    """Returns the tensors of a folder, those of a LLaVA in llava-hf layout under the hub's names, an Idefics2's too.

    transformers 4.52 and later call them otherwise in memory, and with `save_original_format=False` in files too.
    """
    weights = FolderWeights(folder)
    if any(name.startswith(IDEFICS2.in_files[0][1]) for name in weights):
        return Renamed(weights, {IDEFICS2.own_name(name): name for name in weights})
    is_renamed = any(name.startswith(f"model.{LLAVA_HF.language}") for name in weights)
    return Renamed(weights, {_hub_name(name): name for name in weights}) if is_renamed else weights


def _hub_name(name: str) -> str:
    if name.startswith("lm_head."):
        return LLAVA_HF.language + name
    if name.startswith(f"model.{LLAVA_HF.language}"):
        return f"{LLAVA_HF.language}model." + name.removeprefix(f"model.{LLAVA_HF.language}")
    return name.removeprefix("model.")


def language_naming(names: Iterable[str]) -> HFNaming:
    """Returns the layout in which a folder stores its language model, which its names tell."""
    names = set(names)
    if any(name.startswith(LLAVA_HF.language) for name in names):
        return LLAVA_HF
    # either may be absent: a frozen tower is not there, nor has an identity weights
    beside = (LLAVA_ORIGINAL.tower, LLAVA_ORIGINAL.projector)
    return LLAVA_ORIGINAL if any(name.startswith(beside) for name in names) else TEXT


def language_part(
    weights: Mapping[str, Tensor], naming: HFNaming, language: LanguageConfig
) -> Mapping[str, Tensor]:
    """Returns the language model's tensors of a folder."""
    others = (
        (naming.tower.split("vision_tower.")[0] + "vision_tower.", naming.projector) if naming.tower else ()
    )
    found = Filtered(weights, *language_prefixes(language, naming), without=others)
    if language.hf_config is None:
        return found if language.experts is None else ExpertsOneByOne(found, language)
    short = [name.removeprefix(naming.language) for name in found]
    prefix = missing_prefix(language, short)
    return Renamed(found, {f"{naming.language}{prefix}{name}": naming.language + name for name in short})
