"""Templates that are no entry of the table: one of a YAML, the tokenizer's own, and tokens around images."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from neva.config.load import load
from neva.convert.writers.exported_template import jinja, special_end
from neva.data.build import build_encoder
from neva.data.chat_template import chat_template
from neva.data.encode import ConversationEncoder
from neva.errors import ConfigError, SampleError
from neva.formats.nemo import write_nemo
from neva.templates.choice import check_choice, free_template
from neva.templates.template import Turn
from tests.data import tokenizers
from tests.data.test_dataset import model_cfg
from tests.data.test_golden import pairs
from tests.templates.test_template import turns

QWEN = (  # as Qwen2.5 Instruct's: a system prompt of its own
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nS<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (  # as Mistral Instruct's: no system prompt, no prompt for an answer, its own first token
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
FORGETS = (  # as Qwen3's: what an answer began with is gone once there is another one
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '<think>' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ 'A:' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ 'Q:' + message['content'] + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
EXPECTED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "qwen": (QWEN, ("q", "a"), "«system\nS»\n«user\nq»\n«assistant\n{a»}\n"),
    "qwen, three turns": (
        QWEN,
        ("@\nq", "a", "r @", "b", "s", "c"),
        "«system\nS»\n«user\n@\nq»\n«assistant\n{a»}\n«user\nr @»\n«assistant\n{b»}\n«user\ns»\n«assistant\n{c»}\n",
    ),
    "qwen, empty answer": (
        QWEN,
        ("q", "", "r", "b"),
        "«system\nS»\n«user\nq»\n«assistant\n{»}\n«user\nr»\n«assistant\n{b»}\n",
    ),
    "mistral": (MISTRAL, ("q", "a", "@r", "b"), "^[INST] q [/INST]{ a</s>}[INST] @r [/INST]{ b</s>}"),
    "marked": (MARKED, ("q", "a", "r", "b"), "Q:q\nA:{a</s>}Q:r\nA:{b</s>}"),
}


def encoder(text: str, tags: tuple[str, str] | None = None) -> ConversationEncoder:
    template = chat_template(text, tokenizers.of_bytes())
    return ConversationEncoder(tokenizers.of_bytes(), template, 10_000, False, image_tags=tags)


@pytest.mark.parametrize("case", EXPECTED)
def test_a_chat_template_learns_answers_and_their_ends(case: str) -> None:
    text, texts, expected = EXPECTED[case]
    said = [turn.replace("@", "<image>") for turn in texts]
    found = encoder(text).sample(turns(*said), [2] * "".join(texts).count("@"))
    assert list(zip(*found, strict=True)) == pairs(expected)
    prompt = encoder(text).prompt(said[0], [2] * said[0].count("<image>"))
    assert found[0][: len(prompt)] == prompt and found[1][len(prompt)] != -100


@pytest.mark.parametrize("text", [QWEN, MISTRAL, MARKED])
def test_its_ids_are_those_of_apply_chat_template_and_its_end_is_known(text: str) -> None:
    tokenizer = copy.deepcopy(tokenizers.of_bytes())
    tokenizer.chat_template = text
    messages = [
        {"role": role, "content": said} for role, said in zip(("user", "assistant") * 2, "qarb", strict=False)
    ]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert encoder(text).sample(turns(*"qarb"), [])[0] == expected
    assert encoder(text).template.special_end == ("<|im_end|>" if text is QWEN else "</s>")


def test_a_control_token_in_a_text_is_no_token_of_the_chat_template() -> None:
    said = ("x<|im_end|>\n<|im_start|>", "y</s><|im_end|> z")
    ids, labels = encoder(QWEN).sample(turns(*said), [])
    tokenizer = tokenizers.of_bytes()
    for token, count in (("<|im_end|>", 3), ("<|im_start|>", 3), ("</s>", 0)):
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == count
    text = tokenizer.decode(ids)
    assert said[0] in text and said[1] in text
    assert tokenizer.decode([label for label in labels if label >= 0]) == said[1] + "<|im_end|>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FORGETS, "writes the beginning of a conversation otherwise once it goes on: '.*<think>gpt says 0"),
        ("{{ broken", "the tokenizer's chat template refuses the conversation: "),
        ("always the same", r"leaves out what is said \('human says 0'\)"),
        (
            "{% for m in messages %}{% for part in m['content'] %}"
            "{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}{% endfor %}",
            r"leaves out .* expects a list of parts",
        ),
        (QWEN.replace("message['content']", "message['content'] | upper"), "leaves out"),
    ],
)
def test_a_chat_template_that_cannot_be_learnt_from_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"model.data.conv_template=hf: .*{message}"):
        chat_template(text, tokenizers.of_bytes())


def test_a_system_prompt_is_a_message_where_the_chat_template_takes_one() -> None:
    found = encoder(QWEN).sample(turns("q", "a"), [], "T")
    assert list(zip(*found, strict=True)) == pairs("«system\nT»\n«user\nq»\n«assistant\n{a»}\n")
    silent = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] + eos_token }}{% endfor %}"
    for text in (MISTRAL, silent):
        with pytest.raises(SampleError, match="no place for a system prompt"):
            encoder(text).sample(turns("q", "a"), [], "T")


def images(turn: str) -> list[dict[str, str]]:
    return [{"type": "image"}] * turn.count("<image>")


def rendered(text: str, messages: list[dict[str, Any]], prompt: bool) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text).render(
        messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )


FREE = {
    "human": "Q: {}\n",
    "gpt": "A:",
    "answer": " {}",
    "end": "<|im_end|>",
    "after": "\n",
    "special_tokens": ["<|im_end|>"],
}
CASES: dict[str, tuple[dict[str, Any], tuple[str, str] | None]] = {
    "free": ({"conv_template": "free", "template": FREE}, None),
    "qwen": ({"conv_template": "hf", "template": {"chat_template": QWEN}}, None),
    "qwen with a system prompt": (
        {"conv_template": "hf", "template": {"chat_template": QWEN}, "system": "T"},
        None,
    ),
    "mistral": ({"conv_template": "hf", "template": {"chat_template": MISTRAL}}, None),
    "v1, tagged": ({"conv_template": "v1"}, ("llama_2", "<extra_id_4>")),
    "qwen, tagged": ({"conv_template": "hf", "template": {"chat_template": QWEN}}, ("null", "<im_start>")),
}


@pytest.mark.parametrize("case", CASES)
def test_an_export_renders_what_training_rendered(case: str, tmp_path: Path) -> None:
    data, tags = CASES[case]
    cfg = model_cfg(tmp_path, **data)
    cfg.mm_cfg.llm = {"model_type": tags[0] if tags and tags[0] != "null" else None}
    cfg.mm_cfg.use_im_start_end = tags is not None
    cfg.data.exif_transpose = False
    found = build_encoder(cfg, tokenizers.of_bytes())
    text = jinja(cfg, {"bos_token": "<s>", "eos_token": "</s>"})
    said = ("<image>\nq", "a", "<image>\n<image>\nr", "b")
    roles = ("user", "assistant") * 2
    parts = [
        {"role": role, "content": [{"type": "text", "text": turn.split("\n")[-1]}, *images(turn)]}
        for role, turn in zip(roles, said, strict=True)
    ]
    for messages, prompt in ((parts, False), (parts[:3], True)):
        plain = [
            {"role": message["role"], "content": text} for message, text in zip(messages, said, strict=False)
        ]
        for form in (messages, plain):
            conversation = [*turns(*said[: len(messages)]), *([Turn("gpt", None)] if prompt else [])]
            expected = "".join(
                segment.text for segment in found._render(conversation, said[0].count("<image>") + 2, None)
            )
            bos = "<s>" if found.template.begins_with_bos else ""
            assert rendered(text, form, prompt) == bos + expected
    if tags:
        assert tags[1] in text
    if data["conv_template"] == "free":
        assert special_end(cfg, tmp_path) == "<|im_end|>"


@pytest.mark.parametrize(
    ("model_type", "begin", "end"),
    [
        ("nvgpt", "<extra_id_4>", "<extra_id_5>"),
        ("llama_2", "<extra_id_4>", "<extra_id_5>"),
        (None, "<im_start>", "<im_end>"),
    ],
)
def test_tokens_around_images_are_those_of_the_language_model(
    model_type: str | None, begin: str, end: str, tmp_path: Path
) -> None:
    cfg = model_cfg(tmp_path, system="S")
    cfg.mm_cfg.merge_with({"llm": {"model_type": model_type}, "use_im_start_end": True})
    encoder = build_encoder(cfg, tokenizers.of_bytes())
    found = encoder.sample(turns("<image>\nq", "a", "x<image>", "b"), [2, 2])
    image = f"{begin}<image>{end}"
    expected = f"^S USER: {image}\nq ASSISTANT:{{ a</s>}}USER: x{image} ASSISTANT:{{ b</s>}}"
    assert list(zip(*found, strict=True)) == pairs(expected)
    forged, _ = encoder.sample(turns(begin, end), [])  # in a text they are characters
    assert not {*forged} & {*encoder.tokenizer.convert_tokens_to_ids([begin, end])}


def test_tokens_around_images_that_the_tokenizer_lacks_are_named(tmp_path: Path) -> None:
    cfg = model_cfg(tmp_path)
    cfg.mm_cfg.merge_with({"llm": {"model_type": "llama_3"}, "use_im_start_end": True})
    message = (
        r"use_im_start_end puts <\|reserved_special_token_4\|> and <\|reserved_\w*5\|> around an image, which"
    )
    with pytest.raises(ConfigError, match=message):
        build_encoder(cfg, tokenizers.of_bytes())


def test_a_template_of_a_yaml_is_checked_and_used(tmp_path: Path) -> None:
    found = build_encoder(model_cfg(tmp_path, conv_template="free", template=FREE), tokenizers.of_bytes())
    ids, labels = found.sample(turns("q", "a"), [])
    assert list(zip(ids, labels, strict=True)) == pairs("^Q: q\nA:{ a»}\n")
    for name, own, message in (
        ("free", None, r"conv_template=free needs model.data.template: {human: "),
        ("free", {"human": "q"}, r"model.data.template.human is 'q'; expected {} once"),
        (
            "free",
            {"human": "{}", "humn": ""},
            "model.data.template.humn is no key of a template; there are human",
        ),
        ("free", {"human": "{}", "end": 3}, "model.data.template.end is 3, expected a text or null"),
        ("free", {"human": "{}", "end": ""}, "model.data.template.end is empty"),
        ("free", {"human": "{}", "special_tokens": "x"}, "special_tokens is 'x', expected a list of tokens"),
        ("free", {"human": "<image>{}"}, "human is '<image>{}'; take the placeholder out"),
        ("v1", {"human": "{}"}, "acts with model.data.conv_template=free or hf only, found v1"),
        ("hf", {"human": "{}"}, "expected the one key chat_template"),
        ("hf", None, "which has none: give model.data.template.chat_template"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_choice(name, own)  # type: ignore[arg-type]
    assert free_template({"human": "{}"}).end is None


def test_a_template_whose_text_becomes_other_tokens_is_named(tmp_path: Path) -> None:
    untold = model_cfg(tmp_path, conv_template="free", template={"human": "{}</s>", "gpt": "A:"})
    forged = model_cfg(tmp_path, system="S</s>")
    for cfg in (untold, forged):
        with pytest.raises(ConfigError, match=r"writes '</s>', .* as text: name it in .*special_tokens"):
            build_encoder(cfg, tokenizers.of_bytes())
    merged = model_cfg(tmp_path, conv_template="free", template={"human": "Q: {}\n"})
    with pytest.raises(
        ConfigError, match="reads the end of a prompt otherwise .* or a template with other text"
    ):
        build_encoder(merged, tokenizers.llama_like(tmp_path / "tokenizer"))


def test_the_chat_template_of_the_tokenizer_s_folder_is_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    tokenizers.chatml(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    keys = [f"model.tokenizer.type={folder}", "model.vocab_size=512", "model.data.conv_template=hf"]
    with pytest.raises(ConfigError, match="which has none: give"):
        load("quickstart_finetune", keys)
    settings["chat_template"] = [{"name": "default", "template": QWEN}, {"name": "tools", "template": "x"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load("quickstart_finetune", keys).model.data.template == {"chat_template": QWEN}
    (folder / "chat_template.jinja").write_text(MISTRAL)
    assert load("quickstart_finetune", keys).model.data.template == {"chat_template": MISTRAL}


def test_the_chat_template_of_a_nemo_s_tokenizer_is_recorded_too(tmp_path: Path) -> None:
    """And that beside the tokenizer.json which is named."""
    folder = tmp_path / "tokenizer"
    tokenizers.chatml(folder)
    (folder / "chat_template.jinja").write_text(QWEN)
    write_nemo(tmp_path / "llm.nemo", {"vocab_size": 512}, [], folder, None, "test", {})
    for source in (tmp_path / "llm.nemo", folder / "tokenizer.json"):
        keys = [f"model.tokenizer.type={source}", "model.vocab_size=512", "model.data.conv_template=hf"]
        assert load("quickstart_finetune", keys).model.data.template == {"chat_template": QWEN}
