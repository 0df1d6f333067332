"""Configurations on both sides: a Hugging Face `config.json` from shapes, and the native `model` section from
a shape.

What transformers 4.45 to 5.x must all read is written in both spellings: `rope_parameters` with `rope_theta`
and `rope_scaling` beside it, `torch_dtype` instead of `dtype`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from neva.config.derive import LANGUAGE_KEYS, TOWER_KEYS
from neva.config.model_config import language_config_of
from neva.families.configs import LanguageConfig, VisionConfig

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def family(shape: LanguageConfig) -> str:
    """The `model_type` of transformers that computes what `shape` says. ValueError when there is none."""
    if shape.qk_norm and shape.qkv_bias:
        raise ValueError(
            "no model_type of transformers has both q/k norms and QKV biases; export is not possible"
        )
    if shape.qk_norm:
        return "qwen3"
    if shape.qkv_bias:
        return "qwen2"
    return "mistral" if shape.sliding_window is not None else "llama"


def text_config(shape: LanguageConfig, dtype: torch.dtype, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of the language model; `token_ids` are `bos_token_id`, `eos_token_id` and
    `pad_token_id`.
    """
    model_type = family(shape)
    scaling = dict(shape.rope_scaling) if shape.rope_scaling else None
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [CLASSES[model_type]],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_query_groups,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": shape.rope_theta},
        "tie_word_embeddings": shape.tied,
        "attention_dropout": 0.0,
        "torch_dtype": dtype_name(dtype),
        "use_cache": True,
        **token_ids,
    }
    if model_type == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    if model_type == "qwen3":
        config["attention_bias"] = False
    if model_type in ("qwen2", "qwen3"):
        windowed = shape.sliding_window is not None
        config |= {"use_sliding_window": windowed, "max_window_layers": 0 if windowed else shape.num_layers}
    if model_type != "llama":
        config["sliding_window"] = shape.sliding_window
    return config


def vision_config(shape: VisionConfig, dtype: torch.dtype, pooling_head: bool) -> dict[str, Any]:
    """The `vision_config` of a CLIP or SigLIP tower. ValueError for another: its table is not written."""
    if shape.model_type not in ("clip", "siglip"):
        raise ValueError(f"a {shape.model_type!r} tower cannot be exported; expected clip or siglip")
    config: dict[str, Any] = {
        "model_type": f"{shape.model_type}_vision_model",
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "num_channels": 3,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "hidden_act": shape.hidden_act,
        "layer_norm_eps": shape.layer_norm_eps,
        "attention_dropout": 0.0,
        "torch_dtype": dtype_name(dtype),
    }
    if shape.model_type == "siglip":
        config["vision_use_head"] = pooling_head
    return config


def language_section(shape: LanguageConfig) -> dict[str, Any]:
    """The keys of a native `model` section that describe a language model."""
    return {
        **{key: getattr(shape, field) for key, field in LANGUAGE_KEYS.items()},
        "max_position_embeddings": shape.max_positions,
        "encoder_seq_length": shape.max_positions,
        "make_vocab_size_divisible_by": 128,
        "tensor_model_parallel_size": 1,
    }


def vision_section(shape: VisionConfig) -> dict[str, Any]:
    """The keys of `mm_cfg.vision_encoder` that describe a tower."""
    keys = {key: getattr(shape, field) for key, field in TOWER_KEYS.items()}
    return {**keys, "vision_select_layer": shape.select_layer, "class_token_length": shape.class_token_length}


def stored_config(config: DictConfig) -> LanguageConfig:
    """The language model of a `.nemo`'s configuration, without vocabulary padding: files hold none."""
    defaults = {"make_vocab_size_divisible_by": 1, "tensor_model_parallel_size": 1}
    shape = language_config_of(OmegaConf.merge(config, defaults))  # type: ignore[arg-type]
    return replace(shape, padded_vocab_size=shape.vocab_size)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, `bfloat16` … as a `config.json` spells it."""
    return str(dtype).removeprefix("torch.")
