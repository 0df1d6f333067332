"""Which template `model.data.conv_template` means: one by its name, one of the YAML's own, or the tokenizer's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from neva.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from neva.errors import ConfigError
from neva.registry import TEMPLATES
from neva.templates.template import Template, template_names

FREE, CHAT = "free", "hf"
"""Names of the template that `model.data.template` spells out, and of the tokenizer's own chat template."""

CHAT_KEY = "chat_template"
"""Key of `model.data.template` under which a chat template stands."""

DEFAULTS: dict[str, Any] = {
    "begins_with_bos": True,
    "default_system": "",
    "system": "",
    "gpt": "",
    "answer": "{}",
    "end": None,
    "after": "",
}
"""What a template of the YAML's own need not say, beside the fields of `Template` that have a default."""

OPTIONAL = {field.name: field.default for field in fields(Template) if field.default is not MISSING}
KEYS = ("human", *DEFAULTS, *(key for key in OPTIONAL if key not in ("is_caption", "other_names", "jinja")))


def template_choices() -> tuple[str, ...]:
    """Returns all that `model.data.conv_template` may say."""
    return (*template_names(), FREE, CHAT)


def known(name: str) -> Template:
    """Returns the registered template of that name; ConfigError, naming them all, when there is none."""
    if name not in TEMPLATES:
        raise ConfigError(
            f"model.data.conv_template is {name!r}, expected one of {', '.join(template_choices())}"
        )
    template: Template = TEMPLATES[name]
    return template


def written_template(name: str, own: Mapping[str, Any] | None) -> Template:
    """Returns the template that is registered as `name` or spelt out in `own`; a chat template needs its tokenizer."""
    return free_template(own) if name == FREE else known(name)


def check_choice(name: str, own: Mapping[str, Any] | None) -> None:
    """Raises ConfigError unless `model.data.template` is there when `name` needs it, and fits it."""
    if name == FREE:
        free_template(own)
    elif name == CHAT:
        chat_text(own)
    elif own is not None:
        raise ConfigError(
            f"model.data.template acts with model.data.conv_template={FREE} or {CHAT} only, found {name}"
        )


def chat_text(own: Mapping[str, Any] | None) -> str:
    """Returns the chat template that the section holds."""
    text = (own or {}).get(CHAT_KEY)
    if not isinstance(text, str) or len(own or {}) != 1:
        raise ConfigError(
            f"model.data.conv_template={CHAT} takes the chat template of the folder model.tokenizer.type, which has "
            f"none: give model.data.template.{CHAT_KEY}"
            if not own
            else f"model.data.template with model.data.conv_template={CHAT}: expected the one key {CHAT_KEY}, a text"
        )
    return text


def free_template(own: Mapping[str, Any] | None) -> Template:
    """Returns the template that `model.data.template` spells out, by the field names of `Template`."""
    where = "model.data.template"
    if not own or "human" not in own:
        raise ConfigError(
            f'model.data.conv_template={FREE} needs {where}: {{human: "Q: {{}}\\n", gpt: "A:", answer: " {{}}", …}}'
        )
    if unknown := set(own) - set(KEYS):
        raise ConfigError(f"{where}.{min(unknown)} is no key of a template; there are {', '.join(KEYS)}")
    values = {**DEFAULTS, **own}
    for key, value in values.items():
        _check_type(f"{where}.{key}", key, value)
    values["special_tokens"] = tuple(values.get("special_tokens", ()))
    template = Template(**values)
    needed = {"human": template.human, "answer": template.answer}
    optional = {key: getattr(template, key) for key in ("system", "label", "next_human", "image_first")}
    for key, pattern in {**needed, **{key: text for key, text in optional.items() if text}}.items():
        if pattern.count("{}") != 1:
            raise ConfigError(f"{where}.{key} is {pattern!r:.80}; expected {{}} once, where the text goes")
    for key, text in values.items():
        if isinstance(text, str) and (IMAGE_PLACEHOLDER in text or VIDEO_PLACEHOLDER in text):
            raise ConfigError(
                f"{where}.{key} is {text!r:.80}; take the placeholder out, records have their own"
            )
    if template.end == "":
        raise ConfigError(
            f"{where}.end is empty, so that no answer would end; null is the tokenizer's end of sequence"
        )
    return template


def _check_type(where: str, key: str, value: Any) -> None:
    if key == "begins_with_bos":
        fits, expected = isinstance(value, bool), "true or false"
    elif key == "special_tokens":
        fits = isinstance(value, (list, tuple)) and all(isinstance(token, str) and token for token in value)
        expected = "a list of tokens"
    else:
        may_be_null = {**DEFAULTS, **OPTIONAL}.get(key, "") is None
        fits = isinstance(value, str) or (value is None and may_be_null)
        expected = "a text or null" if may_be_null else "a text"
    if not fits:
        raise ConfigError(f"{where} is {value!r:.80}, expected {expected}")
