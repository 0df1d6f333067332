"""Jinja chat templates that render what training rendered; messages hold a string, or a list of image and text parts.

As in llava-hf's own templates, images of a list come first. The beginning-of-sequence token is the chat template's: so
it is there once, whether the text is tokenised by `apply_chat_template`, which adds no special tokens, or by the
processor.
"""

from __future__ import annotations

import json
import re

from neva.errors import ConfigError
from neva.registry import TEMPLATES
from neva.templates.template import Template

_CONTENT = """\
{%- macro content(message, image) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ image }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_VIDEOS = """\
{%- for part in message['content'] if part['type'] == 'video' -%}{{ image | replace('image', 'video') }}{%- endfor -%}
"""
_BOS = "{{- bos_token -}}"
_SYSTEM = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = content(messages[0], '') -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = SYSTEM -%}{%- set turns = messages -%}
{%- endif -%}
"""
_NO_SYSTEM = """\
{%- if messages[0]['role'] == 'system' -%}
{{ raise_exception('this template has no place for a system prompt') }}
{%- endif -%}
"""
_TURNS = """\
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}{{ HUMAN }}
{%- else -%}{{ ANSWER }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ PROMPT }}{%- endif -%}
"""

_PARTS = """\
{%- set own = namespace(messages=[], texts=[]) -%}
{%- if SYSTEM is not none and messages[0]['role'] != 'system' -%}
{%- set own.messages = [{'role': 'system', 'content': SYSTEM}] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set own.messages = own.messages + [message] -%}
{%- else -%}
{%- set own.texts = [] -%}
{%- for part in message['content'] if part['type'] == 'image' -%}
{%- set own.texts = own.texts + ['<image>\\n'] -%}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{%- set own.texts = own.texts + [part['text']] -%}
{%- endfor -%}
{%- set own.messages = own.messages + [dict(message, content=own.texts | join(''))] -%}
{%- endif -%}
{%- endfor -%}
{% set messages = own.messages %}
"""

_STRING = re.compile(r'set system = ("(?:[^"\\\x00-\x1f]|\\["\\bfnrt]|\\u[0-9a-f]{4})*") -%')
"""A system prompt as `chat_template` writes it."""


def chat_template(name: str, eos: str, system: str | None = None, has_bos: bool = True) -> str:
    """Returns the Jinja chat template of conversation template `name`, whose answers end with `eos`.

    `system` is the system prompt of messages that bring none; None: the template's own. `has_bos`: the tokenizer has a
    beginning-of-sequence token, which stands first where the conversation template says so.

    Raises:
        ConfigError: there is no such template.
    """
    if name not in TEMPLATES:
        raise ConfigError(
            f"conv_template {name!r} has no chat template; expected one of {', '.join(sorted(TEMPLATES.names()))}"
        )
    return written(TEMPLATES[name], eos, system, has_bos)


def written(template: Template, eos: str, system: str | None = None, has_bos: bool = True) -> str:
    """Returns the Jinja chat template of a template, as `chat_template` does that of a name."""
    prompt = _SYSTEM.replace("SYSTEM", _double_quoted(template.default_system if system is None else system))
    body = template.jinja or _body(template)
    bos = _BOS if has_bos and template.begins_with_bos else ""
    return bos + _CONTENT + (prompt if template.system else "") + body.replace("EOS", _double_quoted(eos))


def of_parts(chat_template: str, system: str | None = None) -> str:
    """Returns a chat template that takes texts alone as one that takes lists of image and text parts too.

    `system`: the system prompt of messages that bring none; None: what the chat template writes then.
    """
    prompt = "none" if system is None else _double_quoted(system)
    return _PARTS.replace("SYSTEM", prompt) + chat_template


def with_tags(chat_template: str, tags: tuple[str, str] | None) -> str:
    """Returns a chat template that writes a token before and one behind each `<image>`."""
    if tags is None:
        return chat_template
    image = _quoted("<image>".join(tags))
    return f"{{%- filter replace('<image>', {image}) -%}}\n{chat_template}{{% endfilter %}}"


def with_videos(chat_template: str) -> str:
    """Returns a chat template of this module that takes videos too, which come behind the images of a message."""
    texts = "{%- for part in message['content'] if part['type'] == 'text'"
    return chat_template.replace(texts, _VIDEOS + texts, 1) if _CONTENT in chat_template else chat_template


def known_template(text: str, eos: str) -> tuple[str, str | None] | None:
    """Returns the name and system prompt (None: the template's own) of which `text` is the chat template.

    None: it is the chat template of none. Exports whose tokenizers put the beginning-of-sequence token are known too.
    """
    text = text.removeprefix(_BOS).replace(_VIDEOS, "")
    string = _STRING.search(text)
    system = None if string is None else str(json.loads(string[1]))
    for name in TEMPLATES.names():
        if text == chat_template(name, eos, system, has_bos=False):
            return name, None if system == TEMPLATES[name].default_system else system
    return None


def _body(template: Template) -> str:
    """Returns the turns of a template that brings no Jinja of its own."""
    end = "EOS" if template.end is None else _quoted(template.end)
    answer = _expression(template.gpt + template.answer, "content(message, '')", end, template.after)
    if template.label:
        answer = f"{_quoted(template.gpt)} + {_label(template)} + "
        answer += _expression(template.answer, "content(message, '')", end, template.after)
    turns = _TURNS.replace("HUMAN", _human(template)).replace("ANSWER", answer)
    turns = turns.replace("PROMPT", _expression(template.gpt + _default_label(template), ""))
    begin = f"{{{{ {_quoted(template.begin)} }}}}\n" if template.begin else ""
    if not template.system:
        return _NO_SYSTEM + begin + turns.replace("in turns", "in messages")
    system = _expression(template.system, "system")
    return f"{begin}{{%- if system -%}}{{{{ {system} }}}}{{%- endif -%}}\n{turns}"


def _human(template: Template) -> str:
    """Returns the expression of a question, which may be written otherwise behind an answer or with an image first."""
    text = "content(message, '<image>\\n')"
    human = _expression(template.human, text)
    if template.next_human is not None:
        human = f"({human} if loop.first else {_expression(template.next_human, text)})"
    if template.image_first is not None:
        human = f"({_expression(template.image_first, text)} if {text}[:7] == '<image>' else {human})"
    return human


def _label(template: Template) -> str:
    """Returns the expression of an answer's label, with the text around it; a message has it under the key `label`."""
    given = _expression(template.label, "message['label']")
    return f"({given} if message['label'] is defined else {_quoted(_default_label(template))})"


def _default_label(template: Template) -> str:
    return "" if template.default_label is None else template.label.replace("{}", template.default_label)


def _expression(pattern: str, value: str, end: str = "", after: str = "") -> str:
    """Returns the sum of a pattern's text and what stands for its `{}`, then `end`, then the text `after`."""
    before, _, behind = pattern.partition("{}")
    terms = (before and _quoted(before), value, behind and _quoted(behind), end, after and _quoted(after))
    return " + ".join(term for term in terms if term) or "''"


def _quoted(text: str) -> str:
    """Returns `text` as a Jinja string literal in single quotes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _double_quoted(text: str) -> str:
    """Returns `text` as a Jinja string literal in double quotes, which JSON's string literals are too."""
    return json.dumps(text, ensure_ascii=False)
