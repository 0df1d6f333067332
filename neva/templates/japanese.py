"""Instructions in Japanese: the Alpaca form of LLM-jp's models (chat template of llm-jp-3-13b-instruct) and Asagi."""

from __future__ import annotations

from neva.registry import TEMPLATES
from neva.templates.template import Template

TEMPLATES.register(
    "japanese",
    Template(
        begins_with_bos=True,
        default_system="以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。",
        system="{}",
        human="\n\n### 指示:\n{}",
        gpt="\n\n### 応答:\n",
        answer="{}",
        end=None,
        after="",
        other_names=("alpaca_jp",),
    ),
)
