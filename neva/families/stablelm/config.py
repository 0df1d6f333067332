"""StableLM's `config.json` (StableLM 3B and StableLM 2 1.6B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neva.errors import ConfigError
from neva.families.configs import LAYER_NORM, DecoderForm, LanguageConfig
from neva.families.llama.config import LLAMA_DEFAULTS, LlamaFamily, refuse
from neva.families.rope import rotary_share
from neva.families.values import flag
from neva.registry import LANGUAGE_FAMILIES


class StableLmFamily(LlamaFamily):
    """LLaMA with layer norms, RoPE in a share of each head, and biases on queries, keys and values where it says so."""

    def read(self, config: Mapping[str, Any]) -> LanguageConfig:
        """See `LanguageFamily`; the epsilon has the key of layer norms."""
        eps = config.get("layer_norm_eps", self.defaults["rms_norm_eps"])
        language = super().read({**config, "rms_norm_eps": eps})
        if language.head_dim * language.num_heads != language.hidden_size:
            raise ConfigError(
                f"hidden_size is {language.hidden_size}, expected num_attention_heads times head_dim, "
                f"{language.num_heads} x {language.head_dim}: transformers' class has no other heads"
            )
        return language

    def has_qkv_bias(self, values: Mapping[str, Any]) -> bool:
        """As `use_qkv_bias` says."""
        return flag(values, "use_qkv_bias")

    def form(self, values: Mapping[str, Any]) -> DecoderForm:
        """Layer norms, and the share of RoPE."""
        return DecoderForm(norm=LAYER_NORM, rotary_share=rotary_share(values))

    def refuse_other_arithmetic(self, values: Mapping[str, Any]) -> None:
        """As LLaMA does; and the 12B model's two."""
        super().refuse_other_arithmetic(values)
        for key in ("qk_layernorm", "use_parallel_residual"):
            if flag(values, key):
                refuse(values, key, "false")

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns what LLaMA has not."""
        return {
            "layer_norm_eps": language.rms_norm_eps,
            "use_qkv_bias": language.qkv_bias,
            "qk_layernorm": False,
            "use_parallel_residual": False,
        }


LANGUAGE_FAMILIES.register(
    "stablelm",
    StableLmFamily(
        "stablelm",
        "StableLmForCausalLM",
        {
            **LLAMA_DEFAULTS,
            "vocab_size": 50304,
            "hidden_size": 2560,
            "intermediate_size": 6912,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.25,
            "use_qkv_bias": False,
            "qk_layernorm": False,
            "use_parallel_residual": False,
        },
        turns_a_share=True,
    ),
)
