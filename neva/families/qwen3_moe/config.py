"""Qwen3-MoE's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neva.families.configs import ExpertsConfig, LanguageConfig
from neva.families.llama.config import LlamaFamily, refuse, window
from neva.families.mixtral.config import MixtralFamily, experts_from, router_keys
from neva.families.mixtral.table import QWEN_NAMES, experts_of
from neva.families.qwen2.config import QWEN_DEFAULTS
from neva.families.values import flag, whole
from neva.registry import LANGUAGE_FAMILIES

QWEN_MOE_DEFAULTS: dict[str, Any] = {
    **QWEN_DEFAULTS,
    "num_hidden_layers": 24,
    "hidden_size": 2048,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
}
"""What Qwen2-MoE and Qwen3-MoE share (transformers 5.23; equal in 4.x)."""


class Qwen3MoeFamily(MixtralFamily):
    """Qwen3 with experts in every layer."""

    expert_names = QWEN_NAMES

    def read_experts(self, values: Mapping[str, Any]) -> ExpertsConfig:
        """See `MixtralFamily`."""
        return experts_from(values, "moe_intermediate_size", not flag(values, "norm_topk_prob"))

    def has_qk_norm(self, config: Mapping[str, Any]) -> bool:
        """Always; the configuration has no key for it."""
        return True

    def sliding_window(self, values: Mapping[str, Any]) -> int | None:
        """Returns the window in tokens, or None: that of all layers, whatever `max_window_layers` says."""
        return window(values) if flag(values, "use_sliding_window") else None

    def refuse_other_arithmetic(self, values: Mapping[str, Any]) -> None:
        """Raises ConfigError for layers without experts, besides what LLaMA refuses."""
        LlamaFamily.refuse_other_arithmetic(self, values)
        if whole(values, "decoder_sparse_step") != 1:
            refuse(values, "decoder_sparse_step", "1 (every layer has experts)")
        if values["mlp_only_layers"]:
            refuse(values, "mlp_only_layers", "[] (every layer has experts)")

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns the window, the experts, and that projections have no biases."""
        tokens = language.sliding_window
        return {
            "attention_bias": False,
            "use_sliding_window": tokens is not None,
            "sliding_window": tokens,
            **qwen_expert_keys(experts_of(language)),
        }

    def computes(self, language: LanguageConfig) -> bool:
        """See `LanguageFamily`."""
        has_shared = experts_of(language).shared_ffn_hidden_size is not None
        return language.qk_norm and not language.qkv_bias and not has_shared


def qwen_expert_keys(experts: ExpertsConfig) -> dict[str, Any]:
    """Returns the keys of `config.json` on experts, of Qwen2-MoE and Qwen3-MoE."""
    return {
        "num_experts": experts.number,
        "moe_intermediate_size": experts.ffn_hidden_size,
        "norm_topk_prob": not experts.pre_softmax,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **router_keys(experts),
    }


LANGUAGE_FAMILIES.register(
    "qwen3_moe",
    Qwen3MoeFamily(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {
            **QWEN_MOE_DEFAULTS,
            "intermediate_size": 6144,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        follows_from_sizes=True,
    ),
)
