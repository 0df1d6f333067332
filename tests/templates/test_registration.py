"""A template that a user registers renders, is chosen in a recipe, and is exported."""

from __future__ import annotations

import pytest

from neva.config.load import load
from neva.errors import ConfigError
from neva.registry import TEMPLATES
from neva.templates.jinja import chat_template
from neva.templates.template import Template, Turn, render, template_names
from tests.families.toys import registered
from tests.templates.test_jinja import jinja

TOY = Template(
    begins_with_bos=False,
    default_system="It's a talk.",
    system="[{}]\n",
    human="<q>Q: {}\n",
    gpt="A:",
    answer=" {}",
    end="<stop>",
    after="\n",
    special_tokens=("<q>", "<stop>"),
    other_names=("interview",),
)
TURNS = [Turn("human", "<image>\nWho's it?"), Turn("gpt", "A cat."), Turn("human", "Sure?")]


@pytest.mark.parametrize("changes", [{}, {"system": ""}, {"end": None, "after": ""}])
def test_its_chat_template_renders_what_training_renders(changes: dict[str, str | None]) -> None:
    template = Template(**{**vars(TOY), **changes})
    with registered(TEMPLATES, "toy", template):
        messages = [
            {"role": "user" if turn.role == "human" else "assistant", "content": turn.text} for turn in TURNS
        ]
        rendered = jinja("toy", messages, prompt=True)
    segments = render(template, [*TURNS, Turn("gpt", None)])
    assert rendered == "".join(segment.text for segment in segments)


def test_a_recipe_chooses_it_and_names_it_when_another_tool_s_name_is_given() -> None:
    with registered(TEMPLATES, "toy", TOY):
        assert template_names() == (
            *("japanese", "plain", "v1", "mistral"),
            *("idefics2", "v1_neva", "llama_2"),
            *("chatml", "toy"),
            *("llama_3", "nvgpt", "nv_steerlm", "nv_dpo"),
        )
        assert load("quickstart_finetune", ["model.data.conv_template=toy"]).model.data.conv_template == "toy"
        with pytest.raises(ConfigError, match="conv_template=interview: neva calls it toy"):
            load("quickstart_finetune", ["model.data.conv_template=interview"])
    with pytest.raises(
        ConfigError,
        match="conv_template=toy: must be one of japanese, plain, v1, mistral, idefics2, v1_neva, llama_2, chatml, ",
    ):
        load("quickstart_finetune", ["model.data.conv_template=toy"])


def test_a_name_of_llava_is_answered_with_neva_s() -> None:
    with pytest.raises(ConfigError, match="conv_template=vicuna_v1: neva calls it v1"):
        load("llava_7b_finetune", ["model.data.conv_template=vicuna_v1"])


def test_a_template_that_does_not_exist_has_no_chat_template() -> None:
    with pytest.raises(
        ConfigError,
        match="has no chat template; expected one of chatml, idefics2, japanese, llama_2, llama_3, mistral, ",
    ):
        chat_template("toy", "</s>")
