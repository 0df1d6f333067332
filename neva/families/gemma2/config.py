"""Gemma 2's `config.json`, and what Gemma 3's has in common with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from neva.errors import ConfigError
from neva.families.configs import AROUND, GELU_TANH, RMS_NORM_PLUS_ONE, DecoderForm, LanguageConfig
from neva.families.llama.config import LLAMA_DEFAULTS, LlamaFamily, refuse
from neva.families.llama.table import NORMS_AROUND
from neva.families.values import flag, number
from neva.formats.json import shown
from neva.registry import LANGUAGE_FAMILIES

WINDOW, WHOLE = "sliding_attention", "full_attention"

GEMMA_DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


class Gemma2Family(LlamaFamily):
    """Norms with a weight that counts from one around each part, GELU, windows in every other layer, soft caps."""

    interval: ClassVar[int] = 2
    """Each so many layers one has no window."""

    def form(self, values: Mapping[str, Any]) -> DecoderForm:
        """What Gemma has and LLaMA has not."""
        return DecoderForm(
            norm=RMS_NORM_PLUS_ONE,
            norm_place=AROUND,
            activation=GELU_TANH,
            query_scalar=number(values, "query_pre_attn_scalar"),
            score_cap=_optional(values, "attn_logit_softcapping"),
            logit_cap=_optional(values, "final_logit_softcapping"),
            scales_embeddings=True,
            global_interval=self.global_interval(values),
        )

    def global_interval(self, values: Mapping[str, Any]) -> int:
        """Returns how many layers it is from one without a window to the next.

        Raises:
            ConfigError: `layer_types` says something else.
        """
        return self.checked_interval(values, self.interval)

    def checked_interval(self, values: Mapping[str, Any], interval: int) -> int:
        """Returns `interval`, unless `layer_types` contradicts."""
        kinds = values.get("layer_types")
        if kinds is not None and kinds != _kinds(interval, values["num_hidden_layers"]):
            raise ConfigError(
                f"layer_types is {shown(kinds)}, expected {WHOLE} in each layer whose number, counted from 1, "
                f"is a multiple of {interval}, and {WINDOW} in the others"
            )
        return interval

    def refuse_other_arithmetic(self, values: Mapping[str, Any]) -> None:
        """Gemma's activation has a key of its own."""
        super().refuse_other_arithmetic({**values, "hidden_act": "silu"})
        # Google's first files say gelu in hidden_act and mean this; transformers asks hidden_activation
        if values["hidden_activation"] != "gelu_pytorch_tanh":
            refuse(values, "hidden_activation", "gelu_pytorch_tanh")
        if flag(values, "use_bidirectional_attention"):
            refuse(values, "use_bidirectional_attention", "false")

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns what LLaMA has not."""
        form, scalar = language.form, language.form.query_scalar
        assert form.global_interval is not None and scalar is not None
        return {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            # transformers' class takes a whole number alone
            "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
            "attn_logit_softcapping": form.score_cap,
            "final_logit_softcapping": form.logit_cap,
            "sliding_window": language.sliding_window,
            "layer_types": _kinds(form.global_interval, language.num_layers),
            "attention_bias": False,
        }


def _kinds(interval: int, layers: int) -> list[str]:
    return [WINDOW if (layer + 1) % interval else WHOLE for layer in range(layers)]


def _optional(values: Mapping[str, Any], key: str) -> float | None:
    return None if values.get(key) is None else number(values, key)


LANGUAGE_FAMILIES.register(
    "gemma2",
    Gemma2Family(
        "gemma2",
        "Gemma2ForCausalLM",
        {**GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        names=NORMS_AROUND,
    ),
)
