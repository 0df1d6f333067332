"""Mistral's instruction template in the form of Megatron-LM's multimodal tokenizer.

Source: Megatron-LM, megatron/training/tokenizer/multimodal_tokenizer.py (`mistral_custom_template`).
"""

from __future__ import annotations

from neva.registry import TEMPLATES
from neva.templates.template import Template

TEMPLATES.register(
    "mistral",
    Template(
        begins_with_bos=True,
        default_system="",
        system="",
        human="[INST] {}[/INST]",
        gpt="",
        answer=" {}",
        end=None,
        after="",
    ),
)
