"""The template of Llama 3 Instruct (Meta's model card), with LLaVA's system prompt for it."""

from __future__ import annotations

from neva.registry import TEMPLATES
from neva.templates.template import Template

_JINJA = """\
{%- set start, end = '<|start_header_id|>', '<|end_header_id|>\\n\\n' -%}
{%- if system -%}{{ start + 'system' + end + system + '<|eot_id|>' }}{%- endif -%}
{%- for message in turns -%}
{{ start + message['role'] + end + content(message, '<image>\\n') + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ start + 'assistant' + end }}{%- endif -%}
"""

TEMPLATES.register(
    "llama_3",
    Template(
        begins_with_bos=True,
        default_system="You are a helpful language and vision assistant. You are able to understand the visual content "
        "that the user provides, and assist the user with a variety of tasks using natural language.",
        system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        human="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        gpt="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer="{}",
        end="<|eot_id|>",
        after="",
        special_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        jinja=_JINJA,
    ),
)
