"""Tower and language model of a resolved `model` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neva.families.configs import LanguageConfig, VisionConfig, padded_vocab_size


def vision_config_of(model_cfg: DictConfig) -> VisionConfig:
    """Returns the tower of a resolved `model` section."""
    tower = model_cfg.mm_cfg.vision_encoder
    return VisionConfig(
        model_type=tower.model_type,
        image_size=tower.image_size,
        patch_size=tower.patch_dim,
        hidden_size=tower.hidden_size,
        num_layers=tower.num_layers,
        num_heads=tower.num_attention_heads,
        ffn_hidden_size=tower.ffn_hidden_size,
        hidden_act=tower.hidden_act,
        layer_norm_eps=tower.layernorm_epsilon,
        select_layer=tower.vision_select_layer,
        class_token_length=tower.class_token_length,
    )


def language_config_of(model_cfg: DictConfig) -> LanguageConfig:
    """Returns the language model of a resolved `model` section."""
    rope_scaling = model_cfg.rope_scaling
    return LanguageConfig(
        num_layers=model_cfg.num_layers,
        hidden_size=model_cfg.hidden_size,
        ffn_hidden_size=model_cfg.ffn_hidden_size,
        num_heads=model_cfg.num_attention_heads,
        num_query_groups=model_cfg.num_query_groups,
        head_dim=model_cfg.kv_channels,
        vocab_size=model_cfg.vocab_size,
        padded_vocab_size=padded_vocab_size(
            model_cfg.vocab_size, model_cfg.make_vocab_size_divisible_by, model_cfg.tensor_model_parallel_size
        ),
        max_positions=model_cfg.max_position_embeddings,
        rope_theta=model_cfg.rotary_base,
        rope_scaling=None if rope_scaling is None else OmegaConf.to_container(rope_scaling),  # type: ignore[arg-type]
        rms_norm_eps=model_cfg.layernorm_epsilon,
        tied=model_cfg.share_embeddings_and_output_weights,
        qkv_bias=model_cfg.add_qkv_bias,
        qk_norm=model_cfg.qk_layernorm,
        sliding_window=model_cfg.window_size,
        family=recorded_family(model_cfg),
    )


def recorded_family(section: Mapping[str, Any] | DictConfig) -> str | None:
    """Returns the family that a `model` section, or that of a language model alone, records; None: sizes tell it."""
    llm = section["mm_cfg"]["llm"] if "mm_cfg" in section else section
    return llm.get("family")
