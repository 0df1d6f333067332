"""Mistral's `config.json`."""

from __future__ import annotations

from typing import Any

from neva.families.configs import LanguageConfig
from neva.families.llama.config import LLAMA_DEFAULTS, LlamaFamily
from neva.registry import LANGUAGE_FAMILIES


class MistralFamily(LlamaFamily):
    """LLaMA with a sliding window in every layer; without one it is a LLaMA."""

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns the window."""
        return {"sliding_window": language.sliding_window}

    def computes(self, language: LanguageConfig) -> bool:
        """See `LanguageFamily`."""
        return not (language.qkv_bias or language.qk_norm) and language.sliding_window is not None


LANGUAGE_FAMILIES.register(
    "mistral",
    MistralFamily(
        "mistral",
        "MistralForCausalLM",
        {
            **LLAMA_DEFAULTS,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        follows_from_sizes=True,
    ),
)
