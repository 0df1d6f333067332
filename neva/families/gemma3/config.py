"""Gemma 3's `config.json`: that of its language model, or the `text_config` of a model with a tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from neva.errors import ConfigError
from neva.families.configs import DecoderForm, LanguageConfig
from neva.families.gemma2.config import GEMMA_DEFAULTS, WHOLE, WINDOW, Gemma2Family
from neva.families.llama.table import NORMS_AROUND
from neva.families.rope import read_rope
from neva.families.values import number, section, whole
from neva.registry import LANGUAGE_FAMILIES


class Gemma3Family(Gemma2Family):
    """Gemma 2 with norms on queries and keys, five windows to one layer without, and a base of RoPE for windows."""

    interval: ClassVar[int] = 6

    def has_qk_norm(self, config: Mapping[str, Any]) -> bool:
        """Always; the configuration has no key for it."""
        return True

    def form(self, values: Mapping[str, Any]) -> DecoderForm:
        """Gemma 2's, and the base of RoPE in windows."""
        base = {"rope_local_base_freq": values["rope_local_base_freq"]}
        if local := section(section(values, "rope_parameters"), WINDOW):
            if (kind := local.get("rope_type", "default")) != "default":
                raise ConfigError(f"rope_parameters.{WINDOW}.rope_type is {kind!r}, expected default")
            base = {"rope_local_base_freq": local.get("rope_theta", values["rope_local_base_freq"])}
        return replace(super().form(values), local_rope_theta=number(base, "rope_local_base_freq"))

    def global_interval(self, values: Mapping[str, Any]) -> int:
        """See Gemma 2; older files give the number as `sliding_window_pattern`."""
        kinds, pattern = values.get("layer_types"), values.get("sliding_window_pattern")
        if kinds is None and pattern is not None:
            return whole(values, "sliding_window_pattern")
        if isinstance(kinds, list) and WHOLE in kinds:
            return self.checked_interval(values, kinds.index(WHOLE) + 1)
        return super().global_interval(values)

    def rope(self, values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
        """Returns base and scaling of the layers without a window."""
        parameters = section(values, "rope_parameters")
        if WHOLE in parameters:
            parameters = section(parameters, WHOLE)
        both = {**parameters, **section(values, "rope_scaling")}
        return read_rope({**values, "rope_scaling": None, "rope_parameters": both})

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns Gemma 2's, and RoPE in both spellings."""
        scaling = dict(language.rope_scaling or {"rope_type": "default"})
        local = language.form.local_rope_theta
        return {
            **super().own_keys(language),
            "sliding_window_pattern": language.form.global_interval,
            "rope_local_base_freq": local,
            "rope_parameters": {
                WHOLE: {**scaling, "rope_theta": language.rope_theta},
                WINDOW: {"rope_type": "default", "rope_theta": local},
            },
        }


LANGUAGE_FAMILIES.register(
    "gemma3_text",
    Gemma3Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            **GEMMA_DEFAULTS,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
        names=NORMS_AROUND,
    ),
)
