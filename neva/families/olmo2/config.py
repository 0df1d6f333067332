"""OLMo 2's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neva.families.configs import AFTER, ALL_HEADS, DecoderForm, LanguageConfig
from neva.families.llama.config import LLAMA_DEFAULTS, LlamaFamily
from neva.families.llama.table import NORMS_AFTER
from neva.registry import LANGUAGE_FAMILIES


class Olmo2Family(LlamaFamily):
    """LLaMA whose norms stand behind attention and feed-forward, with norms on all queries and all keys."""

    def has_qk_norm(self, config: Mapping[str, Any]) -> bool:
        """Always; the configuration has no key for it."""
        return True

    def form(self, values: Mapping[str, Any]) -> DecoderForm:
        """Where norms stand, and what those of queries and keys are taken over."""
        return DecoderForm(norm_place=AFTER, qk_norm_over=ALL_HEADS)

    def sliding_window(self, values: Mapping[str, Any]) -> int | None:
        """None: the class has no window."""
        return None

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns that projections have no biases."""
        return {"attention_bias": False}


LANGUAGE_FAMILIES.register(
    "olmo2",
    Olmo2Family(
        "olmo2",
        "Olmo2ForCausalLM",
        {**LLAMA_DEFAULTS, "vocab_size": 50304, "rms_norm_eps": 1e-5},
        names=NORMS_AFTER,
    ),
)
