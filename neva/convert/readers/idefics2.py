"""Idefics2 models in Hugging Face folders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tokenizers import Tokenizer

from neva.constants import IMAGE_PLACEHOLDER
from neva.convert.hf_layouts import IDEFICS
from neva.convert.lazy_model import LazyModel
from neva.convert.options import Options
from neva.convert.part_weights import vision_weights
from neva.convert.readers.section import model_section
from neva.convert.stored_tokenizer import stored_tokenizer
from neva.data.media.processor import checked_settings
from neva.data.media.processor_settings import square_settings
from neva.errors import CheckpointError, naming
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.language import language_table, read_language_config
from neva.families.values import number, section, whole
from neva.families.vision_reading import read_vision_config
from neva.formats.chat_template import read_chat_template
from neva.formats.hf_files import read_config, read_image_processor
from neva.formats.json import shown
from neva.model.perceiver import EPSILON
from neva.templates.idefics2 import END, system_of
from neva.weights.lazy import Chained, Converted
from neva.weights.parts import folder_weights, language_part, projector_weights

logger = logging.getLogger(__name__)

PERCEIVER = {
    "resampler_n_latents": 64,
    "resampler_depth": 3,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
    "num_key_value_heads": 4,
    "hidden_size": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}
"""What a `perceiver_config` omits: the defaults of transformers."""


def read(folder: Path, options: Options) -> LazyModel:
    """Opens the model of a folder, with all rows of its vocabulary.

    Raises:
        CheckpointError: neva has no such model, or tensors do not fit.
    """
    config, processor = read_config(folder), read_image_processor(folder)
    language, vision = read_language_config(folder), read_vision_config(folder)
    with naming(folder):
        kind = perceiver_kind(config, language)
    weights, layout = folder_weights(folder), IDEFICS.naming
    projector = projector_weights(weights, kind, vision, language, layout, folder)
    return LazyModel(
        name=str(folder),
        config=_section(folder, language, vision, kind, processor),
        language=language,
        vision=vision,
        connector=kind,
        weights=Chained(
            Converted(language_table(language, layout), language_part(weights, layout, language), folder),
            projector,
            vision_weights(folder, vision),
        ),
        tokenizer=_tokenizer(folder, config),
        image_processor=checked_settings(
            square_settings(processor, vision.image_size), vision.image_size, folder
        ),
        tower_reference=None,
    )


def perceiver_kind(config: Mapping[str, Any], language: LanguageConfig) -> str:
    """Returns the connector that a `config.json` describes.

    Raises:
        ConfigError: a size is none.
        CheckpointError: it computes something else.
    """
    values = {**PERCEIVER, **section(config, "perceiver_config")}
    if values["hidden_size"] != language.hidden_size:  # transformers takes both from the language model then
        values |= {"hidden_size": language.hidden_size, "rms_norm_eps": language.rms_norm_eps}
    if values["hidden_act"] != "silu" or number(values, "rms_norm_eps") != EPSILON:
        raise CheckpointError(
            f"the perceiver has hidden_act {shown(values['hidden_act'])} and rms_norm_eps "
            f"{shown(values['rms_norm_eps'])}, expected 'silu' and {EPSILON}; neva has no other one"
        )
    latents, depth, heads, width, groups = (whole(values, key) for key in list(PERCEIVER)[:5])
    of_groups = "" if groups == heads else f"_g{groups}"
    return f"perceiver_n{latents}_d{depth}_h{heads}x{width}{of_groups}_m{language.ffn_hidden_size}"


def _section(
    folder: Path, language: LanguageConfig, vision: VisionConfig, kind: str, processor: Mapping[str, Any]
) -> DictConfig:
    text = read_chat_template(folder) or ""
    if END not in text:
        logger.warning(
            "%s has no chat template of Idefics2's; the model is recorded with conv_template idefics2", folder
        )
    size = section(processor, "size")
    if not {"shortest_edge", "longest_edge"} <= size.keys():
        raise CheckpointError(
            f"{folder}: size of the image processor is {shown(size)}, expected shortest_edge and longest_edge"
        )
    stored = model_section(language, vision, kind, "idefics2", "native", system_of(text))
    stored.mm_cfg.use_im_start_end, stored.mm_cfg.llm.model_type = True, "idefics2"
    stored.data.merge_with(
        {
            "shortest_edge": whole(size, "shortest_edge"),
            "longest_edge": whole(size, "longest_edge"),
            "do_image_splitting": bool(processor.get("do_image_splitting")),
        }
    )
    return stored


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the tokenizer's files.

    Raises:
        CheckpointError: it has another id for the image token than the model.
    """
    files = stored_tokenizer(folder)
    wanted = config.get("image_token_id", 32001)
    if "tokenizer.json" in files:
        found = Tokenizer.from_str(files["tokenizer.json"].decode()).token_to_id(IMAGE_PLACEHOLDER)
        if found != wanted:
            raise CheckpointError(
                f"{folder}: image_token_id is {wanted}, but {IMAGE_PLACEHOLDER} is {found} in tokenizer.json; take the "
                "tokenizer that belongs to the model"
            )
    return files
