"""Text and mask of every template written out, token by token: a token for each byte, so that ids are text and back."""

from __future__ import annotations

import re

import pytest

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.encode import ConversationEncoder
from neva.registry import TEMPLATES
from neva.templates.template import Turn
from tests.data import tokenizers
from tests.templates.test_template import turns

CASES: dict[str, tuple[str, ...]] = {
    "one turn": ("q", "a"),
    "three turns": ("q", "a", "r", "b", "s", "c"),
    "image first": ("<image>\nq", "a"),
    "image in the middle": ("q <image> r", "a"),
    "image last": ("q\n<image>", "a"),
    "several images": ("<image><image>q", "a", "<image>\nr", "b"),
    "empty answer": ("q", "", "r", "b"),
}
"""Each with the system prompt `S`, where the template takes one, and once more with the template's own."""

EXPECTED: dict[str, tuple[str, ...]] = {
    "v1": (
        "^§ USER: q ASSISTANT:{ a</s>}",
        "^§ USER: q ASSISTANT:{ a</s>}USER: r ASSISTANT:{ b</s>}USER: s ASSISTANT:{ c</s>}",
        "^§ USER: @\nq ASSISTANT:{ a</s>}",
        "^§ USER: q @ r ASSISTANT:{ a</s>}",
        "^§ USER: q\n@ ASSISTANT:{ a</s>}",
        "^§ USER: @@q ASSISTANT:{ a</s>}USER: @\nr ASSISTANT:{ b</s>}",
        "^§ USER: q ASSISTANT:{</s>}USER: r ASSISTANT:{ b</s>}",
    ),
    "v1_neva": (
        "§ USER: q ASSISTANT:{ a</s>}\n<s>",
        "§ USER: q ASSISTANT:{ a</s>}\n<s>USER: r ASSISTANT:{ b</s>}\n<s>USER: s ASSISTANT:{ c</s>}\n<s>",
        "§ USER: @\nq ASSISTANT:{ a</s>}\n<s>",
        "§ USER: q @ r ASSISTANT:{ a</s>}\n<s>",
        "§ USER: q\n@ ASSISTANT:{ a</s>}\n<s>",
        "§ USER: @@q ASSISTANT:{ a</s>}\n<s>USER: @\nr ASSISTANT:{ b</s>}\n<s>",
        "§ USER: q ASSISTANT:{</s>}\n<s>USER: r ASSISTANT:{ b</s>}\n<s>",
    ),
    "llama_2": (
        "^[INST] <<SYS>>\n§\n<</SYS>>\n\nq [/INST]{ a </s>}",
        "^[INST] <<SYS>>\n§\n<</SYS>>\n\nq [/INST]{ a </s>}<s>[INST] r [/INST]{ b </s>}<s>[INST] s [/INST]{ c </s>}",
        "^[INST] <<SYS>>\n§\n<</SYS>>\n\n@\nq [/INST]{ a </s>}",
        "^[INST] <<SYS>>\n§\n<</SYS>>\n\nq @ r [/INST]{ a </s>}",
        "^[INST] <<SYS>>\n§\n<</SYS>>\n\nq\n@ [/INST]{ a </s>}",
        "^[INST] <<SYS>>\n§\n<</SYS>>\n\n@@q [/INST]{ a </s>}<s>[INST] @\nr [/INST]{ b </s>}",
        "^[INST] <<SYS>>\n§\n<</SYS>>\n\nq [/INST]{</s>}<s>[INST] r [/INST]{ b </s>}",
    ),
    "mistral": (
        "^[INST] q[/INST]{ a</s>}",
        "^[INST] q[/INST]{ a</s>}[INST] r[/INST]{ b</s>}[INST] s[/INST]{ c</s>}",
        "^[INST] @\nq[/INST]{ a</s>}",
        "^[INST] q @ r[/INST]{ a</s>}",
        "^[INST] q\n@[/INST]{ a</s>}",
        "^[INST] @@q[/INST]{ a</s>}[INST] @\nr[/INST]{ b</s>}",
        "^[INST] q[/INST]{</s>}[INST] r[/INST]{ b</s>}",
    ),
    "japanese": (
        "^§\n\n### 指示:\nq\n\n### 応答:\n{a</s>}",
        "^§\n\n### 指示:\nq\n\n### 応答:\n{a</s>}\n\n### 指示:\nr\n\n### 応答:\n{b</s>}"
        "\n\n### 指示:\ns\n\n### 応答:\n{c</s>}",
        "^§\n\n### 指示:\n@\nq\n\n### 応答:\n{a</s>}",
        "^§\n\n### 指示:\nq @ r\n\n### 応答:\n{a</s>}",
        "^§\n\n### 指示:\nq\n@\n\n### 応答:\n{a</s>}",
        "^§\n\n### 指示:\n@@q\n\n### 応答:\n{a</s>}\n\n### 指示:\n@\nr\n\n### 応答:\n{b</s>}",
        "^§\n\n### 指示:\nq\n\n### 応答:\n{</s>}\n\n### 指示:\nr\n\n### 応答:\n{b</s>}",
    ),
    "llama_3": (
        "^(system)\n\n§~(user)\n\nq~(assistant)\n\n{a~}",
        "^(system)\n\n§~(user)\n\nq~(assistant)\n\n{a~}(user)\n\nr~(assistant)\n\n{b~}(user)\n\ns~(assistant)\n\n{c~}",
        "^(system)\n\n§~(user)\n\n@\nq~(assistant)\n\n{a~}",
        "^(system)\n\n§~(user)\n\nq @ r~(assistant)\n\n{a~}",
        "^(system)\n\n§~(user)\n\nq\n@~(assistant)\n\n{a~}",
        "^(system)\n\n§~(user)\n\n@@q~(assistant)\n\n{a~}(user)\n\n@\nr~(assistant)\n\n{b~}",
        "^(system)\n\n§~(user)\n\nq~(assistant)\n\n{~}(user)\n\nr~(assistant)\n\n{b~}",
    ),
    "chatml": (
        "«system\n§»\n«user\nq»\n«assistant\n{a»}\n",
        "«system\n§»\n«user\nq»\n«assistant\n{a»}\n«user\nr»\n«assistant\n{b»}\n«user\ns»\n«assistant\n{c»}\n",
        "«system\n§»\n«user\n@\nq»\n«assistant\n{a»}\n",
        "«system\n§»\n«user\nq @ r»\n«assistant\n{a»}\n",
        "«system\n§»\n«user\nq\n@»\n«assistant\n{a»}\n",
        "«system\n§»\n«user\n@@q»\n«assistant\n{a»}\n«user\n@\nr»\n«assistant\n{b»}\n",
        "«system\n§»\n«user\nq»\n«assistant\n{»}\n«user\nr»\n«assistant\n{b»}\n",
    ),
    "nvgpt": (
        "①System\n§②User\nq\n②Assistant\n③LABEL\n{a\n②}",
        "①System\n§②User\nq\n②Assistant\n③LABEL\n{a\n②}User\nr\n②Assistant\n③LABEL\n{b\n②}"
        "User\ns\n②Assistant\n③LABEL\n{c\n②}",
        "①System\n§②User\n@\nq\n②Assistant\n③LABEL\n{a\n②}",
        "①System\n§②User\nq @ r\n②Assistant\n③LABEL\n{a\n②}",
        "①System\n§②User\nq\n@\n②Assistant\n③LABEL\n{a\n②}",
        "①System\n§②User\n@@q\n②Assistant\n③LABEL\n{a\n②}User\n@\nr\n②Assistant\n③LABEL\n{b\n②}",
        "①System\n§②User\nq\n②Assistant\n③LABEL\n{②}User\nr\n②Assistant\n③LABEL\n{b\n②}",
    ),
    "nv_dpo": (
        "①System\n§②User\nq\n②Assistant\n{a\n②}",
        "①System\n§②User\nq\n②Assistant\n{a\n②}User\nr\n②Assistant\n{b\n②}User\ns\n②Assistant\n{c\n②}",
        "①System\n§②User\n@\nq\n②Assistant\n{a\n②}",
        "①System\n§②User\nq @ r\n②Assistant\n{a\n②}",
        "①System\n§②User\nq\n@\n②Assistant\n{a\n②}",
        "①System\n§②User\n@@q\n②Assistant\n{a\n②}User\n@\nr\n②Assistant\n{b\n②}",
        "①System\n§②User\nq\n②Assistant\n{②}User\nr\n②Assistant\n{b\n②}",
    ),
    "idefics2": (
        "^System: §¶\nUser: q¶\nAssistant:{ a¶}\n",
        "^System: §¶\nUser: q¶\nAssistant:{ a¶}\nUser: r¶\nAssistant:{ b¶}\nUser: s¶\nAssistant:{ c¶}\n",
        "^System: §¶\nUser:@\nq¶\nAssistant:{ a¶}\n",
        "^System: §¶\nUser: q @ r¶\nAssistant:{ a¶}\n",
        "^System: §¶\nUser: q\n@¶\nAssistant:{ a¶}\n",
        "^System: §¶\nUser:@@q¶\nAssistant:{ a¶}\nUser:@\nr¶\nAssistant:{ b¶}\n",
        "^System: §¶\nUser: q¶\nAssistant:{¶}\nUser: r¶\nAssistant:{ b¶}\n",
    ),
}
EXPECTED["nv_steerlm"] = EXPECTED["nvgpt"]
SIGNS = {
    "^": "<s>",
    "@": "<image>",
    "«": "<|im_start|>",
    "»": "<|im_end|>",
    "(": "<|start_header_id|>",
    ")": "<|end_header_id|>",
    "~": "<|eot_id|>",
    "①": "<extra_id_0>",
    "②": "<extra_id_1>",
    "③": "<extra_id_2>",
    "¶": "<end_of_utterance>",
    "LABEL": "quality:4,toxicity:0,humor:0,creativity:0,helpfulness:4,correctness:4,coherence:4,complexity:4,"
    "verbosity:4",
}
HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
OWN_SYSTEM = {
    **dict.fromkeys(
        ("v1", "v1_neva"),
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    ),
    **dict.fromkeys(
        ("nvgpt", "nv_steerlm"),
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.\n\n",
    ),
    **dict.fromkeys(("llama_2", "llama_3"), HELPFUL),
    "japanese": "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。",
    "chatml": "You are a helpful assistant.",
    "nv_dpo": "\n",
}


def encoder(template: str) -> ConversationEncoder:
    return ConversationEncoder(tokenizers.of_bytes(), TEMPLATES[template], 10_000, False)


def pairs(written: str) -> list[tuple[int, int]]:
    """Ids and labels of a text with signs; what carries loss stands between braces."""
    for sign, text in SIGNS.items():
        written = written.replace(sign, text)
    result, has_loss = [], False
    for stretch in re.split("([{}]|<image>)", written):
        if stretch in ("{", "}"):
            has_loss = stretch == "{"
        elif stretch == "<image>":
            result += [(IMAGE_TOKEN_ID, IGNORE_INDEX)] * 2
        else:
            ids = tokenizers.of_bytes().encode(stretch, add_special_tokens=False)
            result += [(token, token if has_loss else IGNORE_INDEX) for token in ids]
    return result


@pytest.mark.parametrize("template", EXPECTED)
@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_ids_and_mask_are_those_written_out(template: str, number: int) -> None:
    texts = list(CASES.values())[number]
    images = "".join(texts).count("<image>")
    expected = EXPECTED[template][number]
    for system, written in (("S", "S"), (None, OWN_SYSTEM.get(template, ""))):
        if system and not TEMPLATES[template].system:
            continue
        shown = expected if written else expected.replace("System: §¶\n", "")
        found = encoder(template).sample(turns(*texts), [2] * images, system)
        assert list(zip(*found, strict=True)) == pairs(shown.replace("§", written))


def test_every_template_is_written_out() -> None:
    assert {*EXPECTED, "plain"} == set(TEMPLATES.names())


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("<image>\nDescribe.", "a"), "^@{a\n}"),
        (("Describe.\n<image>", ""), "^@{\n}"),
        (("<image> and <image>", "a"), "^@@{a\n}"),
    ],
)
def test_plain_is_image_and_caption(texts: tuple[str, str], expected: str) -> None:
    found = encoder("plain").sample(turns(*texts), [2] * texts[0].count("<image>"))
    assert list(zip(*found, strict=True)) == pairs(expected)


@pytest.mark.parametrize("template", ["nvgpt", "nv_steerlm", "nv_dpo"])
def test_a_label_stands_before_its_answer_and_carries_no_loss(template: str) -> None:
    conversation = [Turn("human", "q"), Turn("gpt", "a", "quality:9")]
    found = encoder(template).sample(conversation, [], "S")
    expected = "①System\nS②User\nq\n②Assistant\n③quality:9\n{a\n②}"
    assert list(zip(*found, strict=True)) == pairs(expected)
    prompt = encoder(template).prompt("q", [], "S", "quality:9")
    assert prompt == found[0][: len(prompt)] and found[1][len(prompt)] == found[0][len(prompt)]
