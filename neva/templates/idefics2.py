"""The template of Idefics2 (HuggingFaceM4/idefics2-8b)."""

from __future__ import annotations

from neva.registry import TEMPLATES
from neva.templates.template import Template

TEMPLATES.register(
    "idefics2",
    Template(
        begins_with_bos=True,
        default_system="",
        system="System: {}<end_of_utterance>\n",
        human="User: {}<end_of_utterance>\n",
        image_first="User:{}<end_of_utterance>\n",
        gpt="Assistant:",
        answer=" {}",
        end="<end_of_utterance>",
        after="\n",
        special_tokens=("<end_of_utterance>",),
    ),
)
