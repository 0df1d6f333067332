"""Qwen2-MoE's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neva.families.configs import ExpertsConfig, LanguageConfig
from neva.families.llama.config import refuse
from neva.families.mixtral.config import experts_from
from neva.families.mixtral.table import experts_of
from neva.families.qwen3_moe.config import QWEN_MOE_DEFAULTS, Qwen3MoeFamily, qwen_expert_keys
from neva.families.values import flag
from neva.registry import LANGUAGE_FAMILIES


class Qwen2MoeFamily(Qwen3MoeFamily):
    """Qwen2 with experts in every layer, and one more that every token passes."""

    def read_experts(self, values: Mapping[str, Any]) -> ExpertsConfig:
        """See `MixtralFamily`."""
        pre_softmax = not flag(values, "norm_topk_prob")
        return experts_from(values, "moe_intermediate_size", pre_softmax, "shared_expert_intermediate_size")

    def has_qkv_bias(self, values: Mapping[str, Any]) -> bool:
        """Whether queries, keys and values have biases."""
        return flag(values, "qkv_bias")

    def has_qk_norm(self, config: Mapping[str, Any]) -> bool:
        """Never."""
        return False

    def refuse_other_arithmetic(self, values: Mapping[str, Any]) -> None:
        """Raises ConfigError for a window, which only some layers have, besides what Qwen3-MoE refuses."""
        super().refuse_other_arithmetic(values)
        if values["use_sliding_window"]:
            refuse(values, "use_sliding_window", "false (every second layer would have the window)")

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns the experts, and whether projections have biases."""
        experts = experts_of(language)
        return {
            "qkv_bias": language.qkv_bias,
            "use_sliding_window": False,
            "shared_expert_intermediate_size": experts.shared_ffn_hidden_size,
            **qwen_expert_keys(experts),
        }

    def computes(self, language: LanguageConfig) -> bool:
        """See `LanguageFamily`."""
        has_shared = experts_of(language).shared_ffn_hidden_size is not None
        return has_shared and not language.qk_norm and language.sliding_window is None


LANGUAGE_FAMILIES.register(
    "qwen2_moe",
    Qwen2MoeFamily(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {
            **QWEN_MOE_DEFAULTS,
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "qkv_bias": True,
        },
        follows_from_sizes=True,
    ),
)
