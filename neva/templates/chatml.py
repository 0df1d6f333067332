"""ChatML, in which Qwen and others were trained."""

from __future__ import annotations

from neva.registry import TEMPLATES
from neva.templates.template import Template

_JINJA = """\
{%- if system -%}{{ '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}{%- endif -%}
{%- for message in turns -%}
{{ '<|im_start|>' + message['role'] + '\\n' + content(message, '<image>\\n') + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

TEMPLATES.register(
    "chatml",
    Template(
        begins_with_bos=False,
        default_system="You are a helpful assistant.",
        system="<|im_start|>system\n{}<|im_end|>\n",
        human="<|im_start|>user\n{}<|im_end|>\n",
        gpt="<|im_start|>assistant\n",
        answer="{}",
        end="<|im_end|>",
        after="\n",
        special_tokens=("<|im_start|>", "<|im_end|>"),
        jinja=_JINJA,
    ),
)
