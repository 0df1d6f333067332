"""Qwen2's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neva.errors import ConfigError
from neva.families.configs import LanguageConfig
from neva.families.llama.config import LLAMA_DEFAULTS, LlamaFamily, window
from neva.families.values import flag, whole
from neva.registry import LANGUAGE_FAMILIES

QWEN_DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}


class Qwen2Family(LlamaFamily):
    """LLaMA with biases on queries, keys and values, and a window from a certain layer on."""

    def has_qkv_bias(self, values: Mapping[str, Any]) -> bool:
        """Always; the configuration has no key for it."""
        return True

    def refuse_other_arithmetic(self, values: Mapping[str, Any]) -> None:
        """As LLaMA does, but for `attention_bias`, which Qwen2 ignores."""
        super().refuse_other_arithmetic({**values, "attention_bias": False})

    def sliding_window(self, values: Mapping[str, Any]) -> int | None:
        """Returns the window in tokens, or None.

        Raises:
            ConfigError: only the layers from `max_window_layers` on have it.
        """
        if not flag(values, "use_sliding_window"):
            return None
        layers, first = whole(values, "num_hidden_layers"), whole(values, "max_window_layers", low=0)
        # what transformers has written since 4.53, and takes where it is there
        kinds = values.get("layer_types")
        windows = kinds.count("sliding_attention") if isinstance(kinds, list) else max(0, layers - first)
        if windows == 0:
            return None
        if windows < layers:
            raise ConfigError(
                f"{'max_window_layers' if kinds is None else 'layer_types'} gives a window to {windows} of {layers} "
                "layers; neva has one for all layers: expected that, or use_sliding_window false"
            )
        return window(values)

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns the window, of all layers or of none."""
        tokens = language.sliding_window
        return {
            "use_sliding_window": tokens is not None,
            "max_window_layers": language.num_layers if tokens is None else 0,
            "sliding_window": tokens,
        }

    def computes(self, language: LanguageConfig) -> bool:
        """See `LanguageFamily`."""
        return language.qkv_bias and not language.qk_norm


LANGUAGE_FAMILIES.register(
    "qwen2", Qwen2Family("qwen2", "Qwen2ForCausalLM", QWEN_DEFAULTS, follows_from_sizes=True)
)
