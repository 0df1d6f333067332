"""LLaMA: its `config.json`, read and written, and the base of its relatives.

A `config.json` may be partial: what it omits is what transformers' config class of that `model_type` assumes
(transformers 5.23, `models/<type>/configuration_<type>.py`; equal in 4.x).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neva.constants import VOCABULARY
from neva.errors import ConfigError
from neva.families.configs import LLAMA_FORM, DecoderForm, LanguageConfig
from neva.families.llama.sizes import layer_shapes
from neva.families.llama.table import LLAMA_NAMES, LayerNames, llama_table
from neva.families.mapping import Shape, Table
from neva.families.naming import HFNaming
from neva.families.rope import check_scaling, read_rope, rope_keys, rotary_share
from neva.families.values import MOST_LAYERS, flag, number, whole
from neva.formats.json import shown
from neva.registry import LANGUAGE_FAMILIES

LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
}


@dataclass(frozen=True)
class LlamaFamily:
    """A `LanguageFamily` of LLaMA's make; a relative overrides what differs.

    `architecture` is the class of transformers, `defaults` what a partial `config.json` omits.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    follows_from_sizes: bool = False
    has_experts: bool = False
    body: str = "model."
    head: str = "lm_head.weight"
    names: LayerNames = LLAMA_NAMES
    turns_a_share: bool = False
    """Whether transformers' class knows `partial_rotary_factor`."""

    def read(self, config: Mapping[str, Any]) -> LanguageConfig:
        """See `LanguageFamily`."""
        values = {**self.defaults, **config}
        self.refuse_other_arithmetic(values)
        heads, groups, head_dim = _heads(values)
        theta, scaling = self.rope(values)
        language = LanguageConfig(
            num_layers=whole(values, "num_hidden_layers", high=MOST_LAYERS),
            hidden_size=whole(values, "hidden_size"),
            ffn_hidden_size=whole(values, "intermediate_size"),
            num_heads=heads,
            num_query_groups=groups,
            head_dim=head_dim,
            vocab_size=whole(values, "vocab_size"),
            padded_vocab_size=whole(values, "vocab_size"),
            max_positions=whole(values, "max_position_embeddings"),
            rope_theta=theta,
            rope_scaling=scaling,
            rms_norm_eps=number(values, "rms_norm_eps"),
            tied=flag(values, "tie_word_embeddings"),
            qkv_bias=self.has_qkv_bias(values),
            qk_norm=self.has_qk_norm(config),
            sliding_window=self.sliding_window(values),
            form=self.form(values),
        )
        if language.rotary_dim < 2 or language.rotary_dim % 2:
            raise ConfigError(
                f"{language.rotary_dim} of the {head_dim} elements of a head are turned by their position, expected "
                "an even number of them: RoPE turns pairs"
            )
        if scaling is not None:
            check_scaling(scaling, language.rotary_dim)
        return language

    def form(self, values: Mapping[str, Any]) -> DecoderForm:
        """Returns how the arithmetic differs from LLaMA's."""
        return LLAMA_FORM

    def rope(self, values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
        """Returns base and scaling of RoPE."""
        return read_rope(values)

    def has_qkv_bias(self, values: Mapping[str, Any]) -> bool:
        """Whether queries, keys and values have biases."""
        return bool(values["attention_bias"])

    def has_qk_norm(self, config: Mapping[str, Any]) -> bool:
        """Whether queries and keys have norms; `config` is without defaults."""
        return False

    def sliding_window(self, values: Mapping[str, Any]) -> int | None:
        """Returns the window in tokens, or None."""
        return window(values)

    def refuse_other_arithmetic(self, values: Mapping[str, Any]) -> None:
        """Raises ConfigError for settings that would change the arithmetic unnoticed."""
        if values["hidden_act"] not in ("silu", "swish"):
            refuse(values, "hidden_act", "silu")
        if values["mlp_bias"]:
            refuse(values, "mlp_bias", "false")
        if values["attention_bias"]:
            refuse(values, "attention_bias", "false (its output projection would carry a bias)")
        if values.get("use_moe"):
            refuse(values, "use_moe", "false")
        if not self.turns_a_share and (share := rotary_share(values)) != 1.0:
            refuse({"partial_rotary_factor": share}, "partial_rotary_factor", "1.0")

    def write(self, language: LanguageConfig) -> dict[str, Any]:
        """See `LanguageFamily`.

        What transformers 4.45 to 5.x must all read is written in both spellings, see `rope_keys`.
        """
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "vocab_size": language.vocab_size,
            "hidden_size": language.hidden_size,
            "intermediate_size": language.ffn_hidden_size,
            "num_hidden_layers": language.num_layers,
            "num_attention_heads": language.num_heads,
            "num_key_value_heads": language.num_query_groups,
            "head_dim": language.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": language.rms_norm_eps,
            **rope_keys(language),
            "tie_word_embeddings": language.tied,
            "attention_dropout": 0.0,
            "use_cache": True,
            **self.own_keys(language),
        }

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns the keys of `config.json` that not all families have."""
        return {"attention_bias": False, "mlp_bias": False}

    def computes(self, language: LanguageConfig) -> bool:
        """See `LanguageFamily`."""
        return not (language.qkv_bias or language.qk_norm or language.sliding_window is not None)

    def table(self, language: LanguageConfig, naming: HFNaming, hf_rows: int, fill_row: int) -> Table:
        """See `LanguageFamily`."""
        body, head = naming.language + self.body, naming.language + self.head
        return llama_table(language, body, head, hf_rows, fill_row, self.names)

    def vocabulary_names(self, language: LanguageConfig) -> frozenset[str]:
        """See `LanguageFamily`."""
        return frozenset(VOCABULARY)

    def layer_shapes(self, language: LanguageConfig, tensor_parallel_size: int = 1) -> dict[str, Shape]:
        """See `LanguageFamily`."""
        return layer_shapes(language, tensor_parallel_size)


def refuse(values: Mapping[str, Any], key: str, expected: str) -> None:
    """Raises ConfigError for a key of `config.json` whose value neva cannot compute."""
    raise ConfigError(f"{key} is {shown(values[key])}, expected {expected}; neva has no such language model")


def window(values: Mapping[str, Any]) -> int | None:
    """Returns the sliding window of a `config.json` in tokens, or None."""
    return None if values["sliding_window"] is None else whole(values, "sliding_window")


def _heads(values: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the query heads, the key and value heads that they share, and the size of one."""
    heads = whole(values, "num_attention_heads")
    groups = whole(values, "num_key_value_heads") if values["num_key_value_heads"] else heads
    if heads % groups:
        raise ConfigError(
            f"num_attention_heads is {heads}, which num_key_value_heads {groups} does not divide"
        )
    if values["head_dim"]:
        return heads, groups, whole(values, "head_dim")
    return heads, groups, max(1, whole(values, "hidden_size") // heads)


LANGUAGE_FAMILIES.register(
    "llama", LlamaFamily("llama", "LlamaForCausalLM", LLAMA_DEFAULTS, follows_from_sizes=True)
)
