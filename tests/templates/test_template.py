"""The text of each template, character by character."""

import pytest

from neva.errors import SampleError
from neva.registry import TEMPLATES
from neva.templates.template import Turn, insert_media, move_images_to_front, render

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def turns(*texts: str | None) -> list[Turn]:
    return [Turn("human" if number % 2 == 0 else "gpt", text) for number, text in enumerate(texts)]


def marked(template: str, *texts: str | None, system: str | None = None) -> str:
    """The rendered text with what carries loss in [brackets]."""
    segments = render(TEMPLATES[template], turns(*texts), system)
    return "".join(f"[{segment.text}]" if segment.has_loss else segment.text for segment in segments)


@pytest.mark.parametrize(
    ("template", "texts", "expected"),
    [
        ("v1", ("<image>\nWhat?", "A cat"), f"{SYSTEM} USER: <image>\nWhat? ASSISTANT:[ A cat][</s>]"),
        (
            "v1",
            ("a", "b", "c <image>", "d", "e", "f"),
            f"{SYSTEM} USER: a ASSISTANT:[ b][</s>]USER: c <image> ASSISTANT:[ d][</s>]USER: e ASSISTANT:[ f][</s>]",
        ),
        ("v1", ("a", ""), f"{SYSTEM} USER: a ASSISTANT:[</s>]"),
        ("v1", ("a", None), f"{SYSTEM} USER: a ASSISTANT:"),
        ("v1", ("a", "b", "c"), f"{SYSTEM} USER: a ASSISTANT:[ b][</s>]USER: c "),
        ("v1", ("{} {0}", "{x}"), f"{SYSTEM} USER: {{}} {{0}} ASSISTANT:[ {{x}}][</s>]"),
        ("plain", ("Describe it.\n<image>", "a dog"), "<image>[a dog][\n]"),
        ("plain", ("<image>", ""), "<image>[\n]"),
        ("plain", ("<image>", None), "<image>"),
        (
            "chatml",
            ("<image>\na", "b", "c", "d"),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<image>\na<|im_end|>\n<|im_start|>assistant\n[b][<|im_end|>]\n"
            "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d][<|im_end|>]\n",
        ),
        (
            "chatml",
            ("a", ""),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[<|im_end|>]\n",
        ),
        (
            "chatml",
            ("a", None),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
        ),
        (  # preprocess_v1 of the NeVA fork, whose last new line nothing learns from
            "v1_neva",
            ("a", "b", "c", "d"),
            f"{SYSTEM} USER: a ASSISTANT:[ b][</s>]\n<s>USER: c ASSISTANT:[ d][</s>]\n<s>",
        ),
        (  # https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3, without its first token
            "llama_3",
            ("<image>\na", "b", "c", "d"),
            "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are "
            "able to understand the visual content that the user provides, and assist the user with a variety of tasks "
            "using natural language.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n<image>\na<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[b][<|eot_id|>]"
            "<|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[d][<|eot_id|>]",
        ),
        (
            "mistral",
            ("<image>\na", "b", "c", "d"),
            "[INST] <image>\na[/INST][ b][</s>][INST] c[/INST][ d][</s>]",
        ),
        ("mistral", ("a", None), "[INST] a[/INST]"),
        ("mistral", ("a", ""), "[INST] a[/INST][</s>]"),
        (
            "japanese",
            ("<image>\nこれは何？", "猫です。", "c", "d"),
            "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
            "\n\n### 指示:\n<image>\nこれは何？\n\n### 応答:\n[猫です。][</s>]\n\n### 指示:\nc\n\n### 応答:\n[d][</s>]",
        ),
    ],
)
def test_the_text_is_the_templates_and_the_loss_is_on_the_answers(
    template: str, texts: tuple[str | None, ...], expected: str
) -> None:
    assert marked(template, *texts) == expected


def test_a_records_system_prompt_replaces_the_templates() -> None:
    assert marked("v1", "a", "b", system="Be brief.") == "Be brief. USER: a ASSISTANT:[ b][</s>]"
    assert marked("chatml", "a", None, system="").startswith("<|im_start|>user\n")
    assert marked("llama_3", "a", None, system="").startswith("<|start_header_id|>user<|end_header_id|>\n\n")


def test_a_template_without_a_system_prompt_refuses_one() -> None:
    with pytest.raises(SampleError, match="no place for a system prompt, found 'Be brief.'"):
        marked("mistral", "a", "b", system="Be brief.")
    assert marked("mistral", "a", "b", system="") == "[INST] a[/INST][ b][</s>]"


def test_v1_ends_answers_with_the_tokenizers_own_end_of_sequence() -> None:
    segments = render(TEMPLATES["v1"], turns("a", "b"), eos="<|end|>")
    assert (segments[-1].text, segments[-1].is_special) == ("<|end|>", True)


@pytest.mark.parametrize(
    ("template", "bad", "message"),
    [
        ("v1", [], "must alternate"),
        ("v1", [Turn("gpt", "a"), Turn("human", "b")], r"must alternate .* found \['gpt', 'human'\]"),
        ("v1", [Turn("human", "a"), Turn("human", "b")], "must alternate"),
        ("v1", turns("a", None, "b", "c"), "only a last gpt turn"),
        ("v1", turns(None), "only a last gpt turn"),
        ("plain", turns("<image>", "a", "b", "c"), "one question and one answer, found 4 turns"),
        ("plain", turns("no picture", "a"), "needs <image> in its question"),
    ],
)
def test_turns_that_a_template_cannot_take_are_refused(template: str, bad: list[Turn], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        render(TEMPLATES[template], bad)


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("What is it?\n<image>", "<image>\nWhat is it?"),
        ("<image>\nWhat is it?", "<image>\nWhat is it?"),
        ("Is <image> it?", "<image>\nIs  it?"),
        ("<image>", "<image>"),
        ("Compare <image> and <image>", "<image>\n<image>\nCompare  and"),
    ],
)
def test_sep_image_conv_front_puts_the_image_on_the_first_line_of_its_turn(text: str, moved: str) -> None:
    rest = [Turn("gpt", "b"), Turn("human", "and <image> here")]
    moved_rest = [Turn("gpt", "b"), Turn("human", "<image>\nand  here")]
    assert move_images_to_front([Turn("human", text), *rest]) == [Turn("human", moved), *moved_rest]


def test_sep_image_conv_front_leaves_turns_without_an_image_as_they_are() -> None:
    conversation = [*turns(" a ", "b", "<image>", "c"), Turn("human", "d"), Turn("gpt", None)]
    assert move_images_to_front(conversation) == conversation


def test_insert_image_token_adds_the_placeholder_on_its_own_line() -> None:
    assert insert_media("What?", 1, "left") == "<image>\nWhat?"
    assert insert_media("What?", 2, "right") == "What?<image>\n<image>\n"
