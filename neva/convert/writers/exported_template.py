"""What of a model's conversation template an export says: its Jinja, what ends an answer, what begins a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from neva.config.samples import image_tags_of, own_template_of, system_prompt_of
from neva.templates.choice import CHAT, chat_text, written_template
from neva.templates.jinja import of_parts, with_tags, written
from neva.templates.template import Template


def jinja(config: DictConfig, roles: Mapping[str, str]) -> str:
    """Returns the chat template of a model that renders what training rendered; `roles` are the tokenizer's."""
    system, tags = system_prompt_of(config), image_tags_of(config)
    if config.data.conv_template == CHAT:
        return with_tags(of_parts(chat_text(own_template_of(config)), system), tags)
    return with_tags(written(_template(config), roles["eos_token"], system, "bos_token" in roles), tags)


def special_end(config: DictConfig, tokenizer_dir: Path) -> str | None:
    """Returns the control token that ends an answer beside the tokenizer's end of sequence."""
    if config.data.conv_template != CHAT:
        return _template(config).special_end
    from neva.data.chat_template import chat_template
    from neva.data.tokenizer import from_folder

    return chat_template(chat_text(own_template_of(config)), from_folder(tokenizer_dir)).special_end


def begins_with_bos(config: DictConfig) -> bool:
    """Returns whether the tokenizer puts the token that begins a sequence; a chat template writes its own."""
    return config.data.conv_template != CHAT and _template(config).begins_with_bos


def _template(config: DictConfig) -> Template:
    return written_template(config.data.conv_template, own_template_of(config))
