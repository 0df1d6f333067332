"""Jinja chat templates that render what training rendered; messages hold a string, or a list of image and
text parts.

As in llava-hf's own templates, images of a list come first, and the beginning-of-sequence token is the
tokenizer's to add.
"""

_CONTENT = """\
{%- macro content(message, image) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ image }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_SYSTEM = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = content(messages[0], '') -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = SYSTEM -%}{%- set turns = messages -%}
{%- endif -%}
"""
_V1 = """\
{%- if system -%}{{ system + ' ' }}{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}{{ 'USER: ' + content(message, '<image>\\n') + ' ' }}
{%- else -%}{{ 'ASSISTANT: ' + content(message, '') + EOS }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
_CHATML = """\
{%- if system -%}{{ '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}{%- endif -%}
{%- for message in turns -%}
{{ '<|im_start|>' + message['role'] + '\\n' + content(message, '<image>\\n') + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
_PLAIN = """\
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
TEMPLATES = {
    "plain": _CONTENT + _PLAIN,
    "v1": _CONTENT + _SYSTEM + _V1,
    "chatml": _CONTENT + _SYSTEM + _CHATML,
}
SYSTEM_PROMPTS = {
    "plain": "",
    "v1": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions.",
    "chatml": "You are a helpful assistant.",
}
ENDS = {"chatml": "<|im_end|>"}
"""Special tokens that end an answer beside the tokenizer's end of sequence."""
ADDS_BOS = {"plain": True, "v1": True, "chatml": False}


def chat_template(name: str, eos: str) -> str:
    """The Jinja chat template of conversation template `name`, whose answers end with `eos`. ValueError for
    another.
    """
    if name not in TEMPLATES:
        raise ValueError(
            f"conv_template {name!r} has no chat template; expected one of {', '.join(sorted(TEMPLATES))}"
        )
    return TEMPLATES[name].replace("SYSTEM", repr_jinja(SYSTEM_PROMPTS[name])).replace("EOS", repr_jinja(eos))


def repr_jinja(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
