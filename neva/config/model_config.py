"""Tower and language model of a resolved `model` section: which key is which size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neva.families.configs import LanguageConfig, VisionConfig, padded_vocab_size

TOWER_KEYS = {
    "model_type": "model_type",
    "image_size": "image_size",
    "patch_dim": "patch_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "ffn_hidden_size": "ffn_hidden_size",
    "hidden_act": "hidden_act",
    "layernorm_epsilon": "layer_norm_eps",
}
"""Key of `mm_cfg.vision_encoder` -> field of VisionConfig."""

LANGUAGE_KEYS = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "num_heads",
    "num_query_groups": "num_query_groups",
    "kv_channels": "head_dim",
    "vocab_size": "vocab_size",
    "rotary_base": "rope_theta",
    "rope_scaling": "rope_scaling",
    "layernorm_epsilon": "rms_norm_eps",
    "share_embeddings_and_output_weights": "tied",
    "add_qkv_bias": "qkv_bias",
    "qk_layernorm": "qk_norm",
    "window_size": "sliding_window",
}
"""Key of `model` -> field of LanguageConfig."""


def vision_config_of(model_cfg: DictConfig) -> VisionConfig:
    """Returns the tower of a resolved `model` section."""
    tower = model_cfg.mm_cfg.vision_encoder
    sizes = {field: tower[key] for key, field in TOWER_KEYS.items()}
    sizes["layer_norm_eps"] = float(sizes["layer_norm_eps"])  # a YAML may say 1
    return VisionConfig(
        **sizes, select_layer=tower.vision_select_layer, class_token_length=tower.class_token_length
    )


def system_prompt_of(model_cfg: DictConfig) -> str | None:
    """Returns the system prompt of conversations that bring none; None: the template's own.

    Models that were recorded before there was such a key have the template's own.
    """
    return OmegaConf.select(model_cfg, "data.system")


def turns_images(model_cfg: DictConfig) -> bool:
    """Whether images are turned by their EXIF orientation; models recorded before there was such a key do not."""
    return bool(OmegaConf.select(model_cfg, "data.exif_transpose"))


def language_config_of(model_cfg: DictConfig) -> LanguageConfig:
    """Returns the language model of a resolved `model` section."""
    sizes = {field: model_cfg[key] for key, field in LANGUAGE_KEYS.items()}
    sizes |= {field: float(sizes[field]) for field in ("rope_theta", "rms_norm_eps")}
    if sizes["rope_scaling"] is not None:
        sizes["rope_scaling"] = OmegaConf.to_container(sizes["rope_scaling"])
    return LanguageConfig(
        **sizes,
        padded_vocab_size=padded_vocab_size(
            model_cfg.vocab_size, model_cfg.make_vocab_size_divisible_by, model_cfg.tensor_model_parallel_size
        ),
        max_positions=model_cfg.max_position_embeddings,
        family=recorded_family(model_cfg),
    )


def recorded_family(section: Mapping[str, Any] | DictConfig) -> str | None:
    """Returns the family that a `model` section, or that of a language model alone, records; None: sizes tell it."""
    llm = section["mm_cfg"]["llm"] if "mm_cfg" in section else section
    return llm.get("family")


def row_length(model_cfg: DictConfig) -> int:
    """Returns the positions of a full row of a micro batch: of the longest sample, or of a pack."""
    data: DictConfig = model_cfg.data
    longest: int = (
        data.packed_length if data.packed_sequence and data.packed_length else model_cfg.encoder_seq_length
    )
    return longest
