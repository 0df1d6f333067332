"""Phi-3's `config.json`, which Phi-3.5 and Phi-4 have too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from neva.families.configs import DecoderForm, LanguageConfig
from neva.families.llama.config import LLAMA_DEFAULTS, LlamaFamily
from neva.families.llama.table import LLAMA_NAMES
from neva.families.rope import LONGROPE, ORIGINAL, read_rope, rotary_share
from neva.registry import LANGUAGE_FAMILIES


class Phi3Family(LlamaFamily):
    """LLaMA with a window, and longrope where it is made for long sequences."""

    def form(self, values: Mapping[str, Any]) -> DecoderForm:
        """The share of RoPE (Phi-4-mini)."""
        return DecoderForm(rotary_share=rotary_share(values))

    def rope(self, values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
        """Returns base and scaling; the first files call longrope `su`, or `yarn`, which it is not."""
        renamed = {}
        for key in ("rope_parameters", "rope_scaling"):
            if isinstance(found := values.get(key), dict):
                kind = found.get("rope_type", found.get("type"))
                renamed[key] = {**found, "rope_type": LONGROPE if kind in ("su", "yarn") else kind}
        return read_rope({**values, **renamed})

    def own_keys(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns window, and the length from which on the second frequencies are taken."""
        scaling = language.rope_scaling or {}
        return {
            "sliding_window": language.sliding_window,
            ORIGINAL: int(scaling.get(ORIGINAL, language.max_positions)),
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        }


LANGUAGE_FAMILIES.register(
    "phi3",
    Phi3Family(
        "phi3",
        "Phi3ForCausalLM",
        {
            **LLAMA_DEFAULTS,
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "max_position_embeddings": 4096,
            ORIGINAL: 4096,
            "rms_norm_eps": 1e-5,
        },
        names=replace(LLAMA_NAMES, are_joined=True),
        turns_a_share=True,
    ),
)
