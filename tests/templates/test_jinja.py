"""The exported chat templates render what the training data code renders."""

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from neva.registry import TEMPLATES
from neva.templates.jinja import chat_template, known_template
from neva.templates.template import Turn, render


def jinja(name, messages, prompt, system=None):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(chat_template(name, "</s>", system))
    return template.render(messages=messages, add_generation_prompt=prompt)


def as_string(turn):
    label = {} if turn.label is None else {"label": turn.label}
    return {"role": "user" if turn.role == "human" else "assistant", "content": turn.text, **label}


def as_parts(turn):
    if "<image>" in turn.text.removeprefix("<image>\n"):
        pytest.skip("a list has its images first")
    text = turn.text.replace("<image>\n", "")
    parts = [{"type": "text", "text": text}] + [{"type": "image"}] * (turn.text.count("<image>"))
    return {**as_string(turn), "content": parts}


CONVERSATIONS = [
    [Turn("human", '<image>\nWhat is "it"?'), Turn("gpt", "A cat.")],
    [Turn("human", "<image>\nWhat?"), Turn("gpt", "A cat."), Turn("human", "Sure?"), Turn("gpt", "Yes.")],
    [Turn("human", "No image here"), Turn("gpt", "ok")],
    [
        Turn("human", "What is <image> in"),
        Turn("gpt", "a"),
        Turn("human", "<image>\nand here?"),
        Turn("gpt", "b", "quality:9"),
    ],
]
SYSTEM_PROMPTS = ["", "Be brief.", 'Say "yes" or\n\tit\'s \\n \x00\r\n{{ no }} %} 🐈 EOS SYSTEM']


@pytest.mark.parametrize("name", TEMPLATES.names())
@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("form", [as_string, as_parts])
@pytest.mark.parametrize("open_end", [False, True])
def test_renders_what_training_renders(name, turns, form, open_end):
    template = TEMPLATES[name]
    if template.is_caption and (len(turns) > 2 or "<image>" not in turns[0].text):
        pytest.skip("the caption template takes one image and one answer")
    if open_end:
        turns = [*turns[:-1], Turn("gpt", None)]  # with the template's own label
    expected = "".join(segment.text for segment in render(template, turns))
    messages = [form(turn) for turn in turns if turn.text is not None]
    assert jinja(name, messages, open_end) == expected


@pytest.mark.parametrize("name", [name for name in TEMPLATES.names() if TEMPLATES[name].system])
@pytest.mark.parametrize("system", SYSTEM_PROMPTS)
def test_another_system_prompt_is_that_of_training(name, system):
    expected = "".join(segment.text for segment in render(TEMPLATES[name], CONVERSATIONS[1], system))
    assert jinja(name, [as_string(turn) for turn in CONVERSATIONS[1]], False, system) == expected


@pytest.mark.parametrize("name", TEMPLATES.names())
@pytest.mark.parametrize("system", [None, *SYSTEM_PROMPTS])
def test_a_chat_template_is_known_again(name, system):
    is_own = not TEMPLATES[name].system or system == TEMPLATES[name].default_system
    assert known_template(chat_template(name, "</s>", system), "</s>") == (
        "nvgpt" if name == "nv_steerlm" else name,  # one text
        None if is_own else system,
    )


@pytest.mark.parametrize("text", ["", '{%- set system = "" -%}', '{%- set system = "\\\'" -%}'])
def test_a_foreign_chat_template_is_not_known(text):
    assert known_template(text, "</s>") is None


def test_own_system_prompt_replaces_the_default():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert jinja("v1", messages, True) == "Be brief. USER: Hi ASSISTANT:"


def test_a_system_message_is_refused_where_the_template_has_no_place_for_it():
    def raise_exception(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    template = environment.from_string(chat_template("mistral", "</s>"))
    with pytest.raises(TemplateError, match="no place for a system prompt"):
        template.render(
            messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
        )
