"""Mixtral's `config.json`, and the base of the other families with experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from neva.errors import ConfigError
from neva.families.configs import ExpertsConfig, LanguageConfig
from neva.families.llama.config import LLAMA_DEFAULTS, LlamaFamily, refuse
from neva.families.llama.table import llama_table
from neva.families.mapping import Shape, Table
from neva.families.mixtral.table import MIXTRAL_NAMES, expert_layer_shapes, experts_of
from neva.families.naming import HFNaming
from neva.families.values import LARGEST_NUMBER, whole
from neva.formats.json import shown
from neva.registry import LANGUAGE_FAMILIES

NUMBER_KEYS = ("num_local_experts", "num_experts")
"""What transformers calls the number of experts; a `config.json` has one of them."""


@dataclass(frozen=True)
class MixtralFamily(LlamaFamily):
    """A LLaMA each of whose layers has experts; a relative overrides what differs."""

    has_experts: bool = True
    expert_names = MIXTRAL_NAMES

    def read(self, config: Mapping[str, Any]) -> LanguageConfig:
        """See `LanguageFamily`."""
        return replace(super().read(config), experts=self.read_experts({**self.defaults, **config}))

    def read_experts(self, values: Mapping[str, Any]) -> ExpertsConfig:
        """Returns the experts of every layer."""
        return experts_from(values, "intermediate_size", pre_softmax=False)

    def refuse_other_arithmetic(self, values: Mapping[str, Any]) -> None:
        """Raises ConfigError for noise on what the router sees, besides what LLaMA refuses."""
        super().refuse_other_arithmetic(values)
        if values.get("router_jitter_noise"):
            refuse(values, "router_jitter_noise", "0.0")

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns the window and the experts."""
        experts = experts_of(language)
        return {
            "intermediate_size": experts.ffn_hidden_size,
            "num_local_experts": experts.number,
            "sliding_window": language.sliding_window,
            "router_jitter_noise": 0.0,
            **router_keys(experts),
        }

    def computes(self, language: LanguageConfig) -> bool:
        """See `LanguageFamily`."""
        experts = experts_of(language)
        is_plain = not (language.qkv_bias or language.qk_norm)
        return is_plain and not experts.pre_softmax and experts.shared_ffn_hidden_size is None

    def table(self, language: LanguageConfig, naming: HFNaming, hf_rows: int, fill_row: int) -> Table:
        """See `LanguageFamily`."""
        body, head = naming.language + self.body, naming.language + self.head
        return llama_table(language, body, head, hf_rows, fill_row, feed_forward=self.expert_names.rules)

    def layer_shapes(self, language: LanguageConfig, tensor_parallel_size: int = 1) -> dict[str, Shape]:
        """See `LanguageFamily`."""
        return expert_layer_shapes(language, tensor_parallel_size)


def experts_from(
    values: Mapping[str, Any], width_key: str, pre_softmax: bool, shared_key: str | None = None
) -> ExpertsConfig:
    """Returns the experts that a `config.json` gives, their widths under the keys named.

    Raises:
        ConfigError: a token cannot go to that many of them, or the loss that balances them has no usable weight.
    """
    number = whole(values, next((key for key in NUMBER_KEYS if key in values), NUMBER_KEYS[0]))
    coefficient: Any = values["router_aux_loss_coef"]
    if type(coefficient) not in (int, float) or not 0 <= coefficient < LARGEST_NUMBER:
        raise ConfigError(f"router_aux_loss_coef is {shown(coefficient)}, expected a number from 0 on")
    return ExpertsConfig(
        number=number,
        per_token=whole(values, "num_experts_per_tok", high=number),
        ffn_hidden_size=whole(values, width_key),
        pre_softmax=pre_softmax,
        shared_ffn_hidden_size=None if shared_key is None else whole(values, shared_key),
        aux_loss_coeff=float(coefficient),
    )


def router_keys(experts: ExpertsConfig) -> dict[str, Any]:
    """Returns the keys of `config.json` that all families with experts have."""
    return {
        "num_experts_per_tok": experts.per_token,
        "router_aux_loss_coef": experts.aux_loss_coeff,
        "output_router_logits": False,
    }


LANGUAGE_FAMILIES.register(
    "mixtral",
    MixtralFamily(
        "mixtral",
        "MixtralForCausalLM",
        {
            **LLAMA_DEFAULTS,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "router_aux_loss_coef": 0.001,
        },
        follows_from_sizes=True,
    ),
)
