"""Tiny Hugging Face models of every family, with odd sizes: heads != groups, vocabulary 133, widths not
powers of two.
"""

import warnings
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModel
from transformers.models.siglip import SiglipVisionConfig, SiglipVisionModel

SIZES = {
    "vocab_size": 133,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.25, 1.5],
    "long_factor": [2.0, 3.0, 4.0],
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
GEMMA = {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 20, "tie_word_embeddings": True}
FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 6, "rms_norm_eps": 1e-5}),
    "llama3": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "linear_rope": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "smollm2": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 5, "head_dim": 8}),
    "qwen2": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}},
    ),
    "qwen2_untied": (Qwen2Config, Qwen2ForCausalLM, {"rms_norm_eps": 1e-5}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 10, "tie_word_embeddings": True}),
}
RELATIVES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "stablelm": (StableLmConfig, StableLmForCausalLM, {"use_qkv_bias": True, "hidden_size": 48}),
    "phi3": (
        Phi3Config,
        Phi3ForCausalLM,
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    ),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, {}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {**GEMMA, "attn_logit_softcapping": 0.9}),
    "gemma2_uncapped": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {**GEMMA, "attn_logit_softcapping": 0.9, "final_logit_softcapping": None},
    ),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, GEMMA),
    "yarn": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": YARN}),
    "dynamic": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 10, "rope_parameters": DYNAMIC}),
}
"""Families that are not LLaMA's make, and kinds of RoPE."""
TOWER_SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}


TOWERS: dict[str, dict[str, Any]] = {
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 3, "qkv_bias": False},
    "vit": {"qkv_bias": False},
    "deit": {},
    "dinov3_vit": {"num_register_tokens": 2, "use_gated_mlp": True},
    "internvl_vision": {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": True},
    "vit_msn": {},
    "ijepa": {},
}
"""What is not the default of towers that are more than their sizes; the last two have no family of their own here."""


def scramble(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter random, norms and biases too: two that were exchanged would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator) * 0.15
            parameter.copy_(noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.eval()


def language_model(family: str, seed: int = 0, changes: dict[str, Any] | None = None) -> torch.nn.Module:
    """A random transformers causal language model of a family in `FAMILIES` or `RELATIVES`."""
    config_class, model_class, family_changes = (FAMILIES | RELATIVES)[family]
    return scramble(model_class(config_class(**{**SIZES, **family_changes, **(changes or {})})), seed)


def tower(kind: str, seed: int = 1) -> torch.nn.Module:
    """A random transformers vision tower: `clip`, `siglip`, or a model type with sizes of `TOWERS`."""
    if kind in TOWERS:
        with warnings.catch_warnings():  # of registers that are none
            warnings.simplefilter("ignore")
            return scramble(
                AutoModel.from_config(AutoConfig.for_model(kind, **TOWER_SIZES | TOWERS[kind])), seed
            )
    if kind == "clip":
        return scramble(CLIPVisionModel(CLIPVisionConfig(**TOWER_SIZES)), seed)
    return scramble(SiglipVisionModel(SiglipVisionConfig(**TOWER_SIZES)), seed)
