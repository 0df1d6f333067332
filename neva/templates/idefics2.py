"""The template of Idefics2 (HuggingFaceM4/idefics2-8b)."""

from __future__ import annotations

import json
import re

from neva.registry import TEMPLATES
from neva.templates.template import Template

END = "<end_of_utterance>"
_SYSTEM = """\
{%- set system = SYSTEM -%}
{%- if messages[0]['role'] != 'system' -%}{{ 'System: ' + system + END }}{%- endif -%}
"""
_MESSAGES = """\
{%- macro inline(message) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<image>{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- set text = inline(message) -%}
{{ message['role'] | capitalize }}:{{ '' if text[:7] == '<image>' or not text else ' ' }}{{ text + END }}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""


def chat_template(system: str | None) -> str:
    """Returns the Jinja of Idefics2's own folders: images stand where they stand among the texts of a message.

    `system` is the system prompt of messages that bring none. The tokenizer puts what begins a sequence.
    """
    prompt = _SYSTEM.replace("SYSTEM", json.dumps(system, ensure_ascii=False)) if system else ""
    return (prompt + _MESSAGES).replace("END", f"'{END}\\n'")


def system_of(text: str) -> str | None:
    """Returns the system prompt that `chat_template` wrote into a chat template; None: none."""
    found = re.match(r'{%- set system = ("(?:[^"\\\\]|\\\\.)*") -%}', text)
    return None if found is None else str(json.loads(found[1]))


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
