"""Templates of haotian-liu/LLaVA (`llava/conversation.py`, `llava/train/train.py`), and NeVA's variant of one."""

from __future__ import annotations

from dataclasses import replace

from neva.registry import TEMPLATES
from neva.templates.template import Template

_PLAIN_JINJA = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- if message['content'] is string -%}
{{ '<image>' * (message['content'].split('<image>') | length - 1) }}
{%- else -%}{{ content(message, '<image>')[:7 * (message['content'] | selectattr('type', 'equalto', 'image') |
list | length)] }} {%- endif -%}
{%- elif message['role'] == 'assistant' -%}{{ content(message, '') + '\\n' }}
{%- endif -%}
{%- endfor -%}
"""

TEMPLATES.register(
    "plain",
    Template(
        begins_with_bos=True,
        default_system="",
        system="",
        human="{}",
        gpt="",
        answer="{}",
        end="\n",
        after="",
        is_caption=True,
        other_names=("v0_plain",),
        jinja=_PLAIN_JINJA,
    ),
)
V1 = TEMPLATES.register(
    "v1",
    Template(
        begins_with_bos=True,
        default_system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        system="{} ",
        human="USER: {} ",
        gpt="ASSISTANT:",
        answer=" {}",
        end=None,
        after="",
        other_names=("vicuna_v1",),
    ),
)
# lihengtao/NeMo: no token begins the text, a new line and one stand between two turns
TEMPLATES.register(
    "v1_neva",
    replace(V1, begins_with_bos=False, after="\n<s>", special_tokens=("<s>",), other_names=()),
)
TEMPLATES.register(
    "llama_2",  # conv_llava_llama_2
    Template(
        begins_with_bos=True,
        default_system="You are a helpful language and vision assistant. You are able to understand the visual content "
        "that the user provides, and assist the user with a variety of tasks using natural language.",
        begin="[INST] ",
        system="<<SYS>>\n{}\n<</SYS>>\n\n",
        human="{} [/INST]",
        next_human="<s>[INST] {} [/INST]",
        gpt="",
        answer=" {} ",
        end=None,
        after="",
        special_tokens=("<s>",),
        other_names=("llava_llama_2",),
    ),
)
