"""MiniMind's `config.json` (github.com/jingyaogong/minimind, model/model_minimind.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neva.families.configs import LanguageConfig
from neva.families.llama.config import LLAMA_DEFAULTS, LlamaFamily
from neva.registry import LANGUAGE_FAMILIES


class MiniMindFamily(LlamaFamily):
    """Read only: transformers computes it as LLaMA or Qwen3."""

    def has_qk_norm(self, config: Mapping[str, Any]) -> bool:
        """Since the version whose class writes `head_dim`."""
        return "head_dim" in config

    def computes(self, language: LanguageConfig) -> bool:
        """Never: transformers has no such class."""
        return False


LANGUAGE_FAMILIES.register(
    "minimind",
    MiniMindFamily(
        "minimind",
        "LlamaForCausalLM",
        # its class writes every other key
        {
            **LLAMA_DEFAULTS,
            "vocab_size": 6400,
            "max_position_embeddings": 32768,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        },
        follows_from_sizes=True,
    ),
)
