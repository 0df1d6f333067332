"""Qwen3's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neva.families.configs import LanguageConfig
from neva.families.llama.config import LlamaFamily
from neva.families.qwen2.config import QWEN_DEFAULTS, Qwen2Family
from neva.registry import LANGUAGE_FAMILIES


class Qwen3Family(Qwen2Family):
    """LLaMA with norms on queries and keys, and Qwen2's window."""

    has_qkv_bias = LlamaFamily.has_qkv_bias
    refuse_other_arithmetic = LlamaFamily.refuse_other_arithmetic

    def has_qk_norm(self, config: Mapping[str, Any]) -> bool:
        """Always; the configuration has no key for it."""
        return True

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns the window, and that projections have no biases."""
        return {**super().own_keys(language), "attention_bias": False}

    def computes(self, language: LanguageConfig) -> bool:
        """See `LanguageFamily`."""
        return language.qk_norm and not language.qkv_bias


LANGUAGE_FAMILIES.register(
    "qwen3",
    Qwen3Family("qwen3", "Qwen3ForCausalLM", {**QWEN_DEFAULTS, "head_dim": 128}, follows_from_sizes=True),
)
