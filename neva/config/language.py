"""The language model of a resolved `model` section: which key is which size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from neva.config.experts import experts_config_of
from neva.config.peft import lora_of
from neva.config.plain import plain
from neva.families.configs import LLAMA_FORM, SILU, DecoderForm, LanguageConfig, padded_vocab_size
from neva.families.language import HUGGING_FACE, MEGATRON, language_config_from_hf

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

FORM_KEYS = {
    "normalization": "norm",
    "transformer_block_type": "norm_place",
    "activation": "activation",
    "rotary_percentage": "rotary_share",
    "qk_layernorm_scope": "qk_norm_over",
    "query_pre_attn_scalar": "query_scalar",
    "attn_logit_softcapping": "score_cap",
    "final_logit_softcapping": "logit_cap",
    "scale_embeddings": "scales_embeddings",
    "global_attention_interval": "global_interval",
    "rotary_base_local": "local_rope_theta",
}
"""Key of `model` -> field of DecoderForm. One that is null or absent, as in older models, is LLaMA's."""

SAME_ACTIVATION = {"fast-swiglu": SILU}
"""What NeMo calls a fused kernel of the same arithmetic."""

CAUSAL, BIDIRECTIONAL, PREFIX = "causal", "bidirectional", "prefix"
"""`model.image_attention`: what the positions of an image see of it, or of the whole prompt."""


def language_config_of(model_cfg: DictConfig) -> LanguageConfig:
    """Returns the language model of a resolved `model` section."""
    if language_backend_of(model_cfg) == HUGGING_FACE:
        found = language_config_from_hf(plain(recorded_llm(model_cfg)["config"]), HUGGING_FACE)
        return replace(found, lora=lora_of(model_cfg))
    sizes = {field: model_cfg[key] for key, field in LANGUAGE_KEYS.items()}
    sizes |= {field: float(sizes[field]) for field in ("rope_theta", "rms_norm_eps")}
    sizes["rope_scaling"] = plain(sizes["rope_scaling"])
    return LanguageConfig(
        **sizes,
        form=decoder_form_of(model_cfg),
        padded_vocab_size=padded_vocab_size(
            model_cfg.vocab_size, model_cfg.make_vocab_size_divisible_by, model_cfg.tensor_model_parallel_size
        ),
        max_positions=model_cfg.max_position_embeddings,
        family=recorded_family(model_cfg),
        sees_whole_images=image_attention_of(model_cfg) == BIDIRECTIONAL,
        sees_whole_prompts=image_attention_of(model_cfg) == PREFIX,
        experts=experts_config_of(model_cfg),
        lora=lora_of(model_cfg),
    )


def image_attention_of(model_cfg: Mapping[str, Any] | DictConfig) -> str:
    """Returns what positions of an image see; in models recorded before there was a choice, what is before them."""
    return model_cfg.get("image_attention") or CAUSAL


def decoder_form_of(model_cfg: Mapping[str, Any] | DictConfig) -> DecoderForm:
    """Returns how the decoder of a `model` section differs from LLaMA's."""
    given = {field: model_cfg.get(key) for key, field in FORM_KEYS.items()}
    chosen: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    if "activation" in chosen:
        chosen["activation"] = SAME_ACTIVATION.get(chosen["activation"], chosen["activation"])
    floats = ("rotary_share", "query_scalar", "score_cap", "logit_cap", "local_rope_theta")
    chosen |= {field: float(chosen[field]) for field in floats if field in chosen}
    return DecoderForm(**chosen)


def form_keys(form: DecoderForm) -> dict[str, Any]:
    """Returns the keys of `model` that say a form."""
    return {key: getattr(form, field) for key, field in FORM_KEYS.items()}


def differing_form_keys(form: DecoderForm) -> dict[str, Any]:
    """Returns those of them that are not LLaMA's: what a `.nemo` records."""
    usual = form_keys(LLAMA_FORM)
    return {key: value for key, value in form_keys(form).items() if value != usual[key]}


def language_backend_of(section: Mapping[str, Any] | DictConfig) -> str:
    """Returns who runs the language model; of models recorded before there was a choice, Megatron."""
    return section.get("language_backend") or MEGATRON


def recorded_llm(section: Mapping[str, Any] | DictConfig) -> Any:
    """Returns what a `model` section, or that of a language model alone, records of it beside its sizes."""
    return section["mm_cfg"]["llm"] if "mm_cfg" in section else section


def recorded_family(section: Mapping[str, Any] | DictConfig) -> str | None:
    """Returns the family that a `model` section, or that of a language model alone, records; None: sizes tell it."""
    family: str | None = recorded_llm(section).get("family")
    return family
