"""Configurations on both sides: a Hugging Face `config.json`, and the native `model` section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from neva.config.derive_language import language_keys
from neva.config.experts import expert_keys
from neva.config.language import LANGUAGE_KEYS, differing_form_keys, language_config_of
from neva.config.media import media_rules_of
from neva.config.tower import TOWER_KEYS
from neva.convert.lazy_model import LazyModel
from neva.errors import CheckpointError
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.language import backend_of, exported_family
from neva.families.vision import vision_family
from neva.families.vision_sizes import listed


def text_config(language: LanguageConfig, dtype: torch.dtype, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `config.json` of a language model.

    `token_ids` are `bos_token_id`, `eos_token_id` and `pad_token_id`; transformers 4.45 to 5.x all read `torch_dtype`.
    """
    return {**exported_family(language).write(language), "torch_dtype": dtype_name(dtype), **token_ids}


def vision_config(vision: VisionConfig, dtype: torch.dtype, pooling_head: bool) -> dict[str, Any]:
    """Returns the `vision_config` of a tower.

    Raises:
        CheckpointError: the family cannot be exported.
    """
    written = vision_family(vision.model_type).write(vision, pooling_head)
    return {**written, "torch_dtype": dtype_name(dtype)}


def language_section(language: LanguageConfig) -> dict[str, Any]:
    """Returns the keys of a native `model` section that describe a language model.

    What the sizes do not tell, a language model alone records among them; a LLaVA model has keys for it.
    """
    return {
        **{key: getattr(language, field) for key, field in LANGUAGE_KEYS.items()},
        **differing_form_keys(language.form),
        **expert_keys(language.experts),
        "max_position_embeddings": language.max_positions,
        "encoder_seq_length": language.max_positions,
        "make_vocab_size_divisible_by": 128,
        "tensor_model_parallel_size": 1,
        "language_backend": backend_of(language),
        **language_keys(language),
    }


def vision_section(vision: VisionConfig) -> dict[str, Any]:
    """Returns the keys of `mm_cfg.vision_encoder` that describe a tower."""
    keys = {key: getattr(vision, field) for key, field in TOWER_KEYS.items()}
    return {
        **keys,
        "input_size": vision.input_size,
        "config": {key: listed(value) for key, value in vision.others} or None,
        "vision_select_layer": listed(vision.select_layer),
        "class_token_length": vision.class_token_length,
        "post_layernorm": vision.post_layernorm,
    }


def stored_config(config: DictConfig) -> LanguageConfig:
    """Returns the language model of a `.nemo`'s configuration, without vocabulary padding: files hold none."""
    defaults = {"make_vocab_size_divisible_by": 1, "tensor_model_parallel_size": 1}
    language = language_config_of(OmegaConf.merge(config, defaults))  # type: ignore[arg-type]
    return replace(language, padded_vocab_size=language.vocab_size)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns `float32`, `bfloat16` …, as a `config.json` spells it."""
    return str(dtype).removeprefix("torch.")


def check_aspect_ratio(model: LazyModel) -> None:
    """Raises CheckpointError for pixels that no image processor of transformers makes."""
    if model.vision.image_tiles:
        raise CheckpointError(
            f"{model.name} was trained with use_image_tile=true, which neither layout of LLaVA has: there is no "
            "export; models to be exported are trained without it"
        )
    if media_rules_of(model.config, model.vision).tiling.cuts:
        raise CheckpointError(
            f"{model.name} was trained with image_aspect_ratio={model.config.data.image_aspect_ratio}, whose tiles "
            "neither layout of LLaVA has: there is no export; models to be exported are trained with square or pad"
        )
    if (found := model.config.data.image_aspect_ratio) not in ("square", "pad"):
        raise CheckpointError(
            f"{model.name} was trained with image_aspect_ratio={found}, which no image processor of transformers does: "
            "there is no export; models to be exported are trained with square or pad"
        )
