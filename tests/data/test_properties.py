"""Over random conversations: ids are the text and back, answers and their ends are learnt, in linear time."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.chat_template import chat_template
from neva.data.encode import ConversationEncoder
from neva.data.sources.source import open_source
from neva.errors import DataError, SampleError
from neva.registry import TEMPLATES
from neva.templates.template import Turn, render
from tests.conftest import conversation
from tests.data import tokenizers
from tests.data.test_own_templates import MARKED, QWEN

CHATS = {"qwen": QWEN, "marked": MARKED}
PIECES = st.sampled_from(
    [*tokenizers.CONTROL, "<image>", "USER:", "ASSISTANT:", "[/INST] ", "\n", " ", "漢", "é🙂"]
)
SAID = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=4), max_size=6).map(
    "".join
)
CONVERSATIONS = st.lists(
    st.tuples(SAID, SAID.map(lambda text: text.replace("<image>", ""))), min_size=1, max_size=3
)


@cache
def encoder(name: str) -> ConversationEncoder:
    tokenizer = tokenizers.of_bytes()
    template = chat_template(CHATS[name], tokenizer) if name in CHATS else TEMPLATES[name]
    return ConversationEncoder(tokenizer, template, 10**9, False)


@pytest.mark.parametrize("name", [*(name for name in TEMPLATES.names() if name != "plain"), *CHATS])
@settings(max_examples=10, deadline=None)
@given(pairs=CONVERSATIONS)
def test_ids_are_the_text_and_answers_with_their_ends_are_learnt(
    name: str, pairs: list[tuple[str, str]]
) -> None:
    one, tokenizer = encoder(name), tokenizers.of_bytes()
    turns = [turn for asked, answer in pairs for turn in (Turn("human", asked), Turn("gpt", answer))]
    num_images = sum(asked.count("<image>") for asked, _ in pairs)
    ids, labels = one.sample(turns, [2] * num_images)
    segments = render(one.template, turns, eos="</s>")
    begin = "<s>" if one.template.begins_with_bos else ""
    assert text_of(ids) == begin + "".join(segment.text for segment in segments)
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    learnt = tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
    assert learnt == "".join(segment.text for segment in segments if segment.has_loss)
    names = {token for token, special in tokenizers.CONTROL.items() if special or token in one.control_tokens}
    control = {tokenizer.convert_tokens_to_ids(token) for token in names}
    written = sum(segment.is_special for segment in segments) + bool(begin)
    assert sum(token in control for token in ids) == written, "a control token of a text became one"
    ends, said = [one.template.end or "</s>"] * len(pairs), learnt
    for (_, answer), end in zip(pairs, ends, strict=True):
        position = said.index(answer) + len(answer)  # in their order, each before its end
        said = said[said.index(end, position) + len(end) :]
    assert said == ""


def text_of(ids: list[int]) -> str:
    """The text of ids, an image as its placeholder; exact, for a token stands for each byte."""
    tokenizer, parts, text = tokenizers.of_bytes(), [], list(ids)
    while IMAGE_TOKEN_ID in text:
        at = text.index(IMAGE_TOKEN_ID)
        parts.append(tokenizer.decode(text[:at]))
        text = text[at + 2 :]
    return "<image>".join([*parts, tokenizer.decode(text)])


def test_the_time_of_a_turn_grows_as_its_length() -> None:
    def took(length: int) -> float:
        text = ("word </s> <image " * (length // 17 + 1))[:length]
        started = time.process_time()
        ids, _ = encoder("v1").sample([Turn("human", "q"), Turn("gpt", text)], [])
        assert len(ids) > length  # a token for each byte
        return time.process_time() - started

    took(1000)
    short, long = min(took(50_000) for _ in range(2)), took(1_000_000)
    assert long < 80 * max(short, 0.02), "20 times as long; quadratic would be 400 times"


@settings(max_examples=20, deadline=None)
@given(lines=st.lists(st.binary(max_size=30) | SAID.map(str.encode), max_size=5), bad=st.integers(0, 5))
def test_each_line_of_any_file_is_a_record_or_says_which_line(
    lines: list[bytes], bad: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "data.jsonl"
    good = json.dumps({"conversations": conversation("a", "b")}).encode()
    path.write_bytes(b"\n".join([good, *lines[:bad], good, *lines[bad:]]))
    try:
        records = open_source(path)
    except DataError as error:  # UTF-16, as a whole
        assert str(path) in str(error)
        return
    whole = 0
    for index in range(len(records)):
        try:
            whole += records[index].turns == [Turn("human", "a"), Turn("gpt", "b")]
        except SampleError as error:
            assert error.place.startswith("line ") and "\n" not in str(error)
    assert whole >= 1


def test_the_line_of_broken_json_is_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"conversations": []}\n\n{"a": \n\xff\xfe\n')
    places = []
    for index in range(3):
        with pytest.raises(SampleError) as caught:
            open_source(path)[index]
        places.append(caught.value.place)
    assert places == ["line 1", "line 3", "line 4"]
