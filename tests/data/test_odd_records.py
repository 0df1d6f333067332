"""Odd records: what `model.data.odd_records` makes of each kind, and how they are counted and named."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.encode import ConversationEncoder
from neva.data.odd_records import ODDITIES, read_as_llava
from neva.data.quick_check import BrokenRecords
from neva.data.sources.conversation import parse_record
from neva.data.sources.source import Record
from neva.errors import DataError, OddRecordError, SampleError
from neva.registry import TEMPLATES
from neva.templates.template import Turn
from tests.conftest import conversation, image_record, random_image, write_records
from tests.data import tokenizers
from tests.data.test_dataset import dataset, write_dataset
from tests.data.test_video import VIDEO_KEYS

ODD: dict[str, tuple[dict[str, Any], list[str], int]] = {
    "answer first": (
        {"conversations": [{"from": "gpt", "value": "x"}, *conversation("q", "a")]},
        ["q", "a"],
        0,
    ),
    "no image": ({"conversations": conversation("q <image>", "a")}, ["q \ufdd2image>", "a"], 0),
    "no video": ({"conversations": conversation("q <video>", "a")}, ["q <video>", "a"], 0),
    "unused image": ({"image": "0.png", "conversations": conversation("q", "a")}, ["q", "a"], 0),
    "surplus <image>": (
        {"image": "0.png", "conversations": conversation("<image>\n<image>\nq", "a", "<image>?", "b")},
        ["<image>\nq", "a", "?", "b"],
        1,
    ),
    "image in answer": (
        {"image": "0.png", "conversations": conversation("q", "a <image>")},
        ["q", "a <image>"],
        1,
    ),
    "system prompt": ({"system": "S", "conversations": conversation("q", "a")}, ["q", "a"], 0),
}
"""A record of each kind, and its turns and number of images as LLaVA reads it."""


@pytest.mark.parametrize("kind", ODDITIES)
def test_each_kind_is_read_as_llava_does_and_named(kind: str) -> None:
    raw, texts, num_images = ODD[kind]
    record = read_as_llava(parse_record(raw, "7"), has_system_place=kind != "system prompt", has_videos=True)
    assert record.odd == (kind,)
    assert ([turn.text for turn in record.turns], len(record.images)) == (texts, num_images)
    assert record.system is None


def test_what_is_not_odd_stays_as_it_is() -> None:
    record = parse_record(image_record(0, "<image>\nq", "a") | {"system": "S"}, "0")
    assert read_as_llava(record, has_system_place=True, has_videos=True) is record


@pytest.mark.parametrize("kind", [kind for kind in ODDITIES if kind != "system prompt"])
def test_odd_records_are_read_refused_or_skipped_and_counted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, _, num_images = ODD[kind]
    whole = write_dataset(tmp_path, 3)
    write_records(tmp_path / "data.json", [{"id": "odd", **raw}, *whole])
    with pytest.raises(
        OddRecordError, match=r"data\.json, record 0 \(id 'odd'\): .*odd_records=llava: "
    ) as caught:
        dataset(tmp_path, **VIDEO_KEYS, odd_records="fail", on_error="skip")[0]
    assert caught.value.kind == kind
    skipping = dataset(tmp_path, **VIDEO_KEYS, odd_records="skip", on_error="fail")
    assert (skipping[0].record_id, skipping.skipped_count) == ("id-0", 1)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        reading = dataset(tmp_path, **VIDEO_KEYS, odd_records="llava")
        samples = [reading[0] for _ in range(2)]
    (said,) = caplog.messages
    assert "data.json, record 0 (id 'odd'): " in said and ODDITIES[kind].reading in said
    assert [samples[1].record_id, len(samples[0].pixel_values)] == ["odd", num_images]
    assert {name: reading.odd.count(name) for name in ODDITIES if reading.odd.count(name)} == {kind: 1}
    assert reading.odd.of_record(0) == [kind] and not reading.odd.of_record(1)


def test_an_image_placeholder_without_image_is_characters() -> None:
    plain, with_token = (copy.deepcopy(tokenizers.of_bytes()) for _ in range(2))
    with_token.add_tokens([AddedToken("<image>", special=True)])
    turns = [Turn("human", "q <image>"), Turn("gpt", "a <image> b")]
    read = read_as_llava(Record("7", turns, [], "S"), has_system_place=True, has_videos=False)
    found, found_with_token = (
        ConversationEncoder(tokenizer, TEMPLATES["v1"], 999, False).sample(read.turns, [], "S")
        for tokenizer in (plain, with_token)
    )
    assert found == found_with_token
    assert plain.decode(found[0]) == "<s>S USER: q <image> ASSISTANT: a <image> b</s>"
    assert len(found[0]) == len(
        "sS USER: q <image> ASSISTANT: a <image> bs"
    )  # a token each, two of them control


def test_the_positions_of_an_image_in_an_answer_carry_no_loss(tmp_path: Path) -> None:
    random_image(16, 16).save(tmp_path / "0.png")
    write_records(tmp_path / "data.json", [ODD["image in answer"][0]])
    sample = dataset(tmp_path, odd_records="llava")[0]
    labels = sample.labels[sample.input_ids == IMAGE_TOKEN_ID]
    assert len(labels) and set(labels.tolist()) == {IGNORE_INDEX}


def test_when_many_records_lose_their_images_that_is_an_error(tmp_path: Path) -> None:
    whole = write_dataset(tmp_path, 6)
    lost = [image_record(0, "q", "a")] * 3
    write_records(tmp_path / "data.json", [*lost, *whole])
    reading = dataset(tmp_path, odd_records="llava", max_skipped=0.2)
    reading[0]
    with pytest.raises(
        DataError, match=r"record 1 \(id 'id-0'\): there are more images .*, as in 2 of 9 records"
    ):
        reading[1]
    first = [{"conversations": [{"from": "gpt", "value": "x"}, *conversation("q", "a")]}] * 9
    write_records(tmp_path / "data.json", first)
    reading = dataset(tmp_path, odd_records="llava", max_skipped=0.0)
    assert [reading[index].record_id for index in (0, 8)] == ["0", "8"]


def test_a_preflight_lists_each_kind_once(tmp_path: Path) -> None:
    kinds = [kind for kind in ODDITIES if kind != "system prompt"]
    write_dataset(tmp_path, 1)
    write_records(tmp_path / "data.json", [ODD[kind][0] for kind in kinds for _ in range(2)])
    samples, broken = dataset(tmp_path, **VIDEO_KEYS, odd_records="fail"), BrokenRecords()
    for index in range(len(samples)):
        try:
            samples.check(index)
        except SampleError as error:
            broken.add(index, error)
    lines = broken.lines(samples, passed_over=False)
    assert len(lines) == len(kinds)
    assert all("(1 more records like it)" in line for line in lines)


PARTS: list[tuple[Any, str, list[str]]] = [
    ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab", []),
    (
        [{"type": "image_url", "image_url": {"url": "1.png"}}, {"type": "text", "text": "a"}],
        "<image>\na",
        ["1.png"],
    ),
    ([{"type": "text", "text": "a"}, {"type": "image", "image": "1.png"}], "a\n<image>", ["1.png"]),
    (
        [
            {"type": "image", "path": "1.png"},
            {"type": "image", "url": "2.png"},
            {"type": "text", "text": "a"},
        ],
        "<image>\n<image>\na",
        ["1.png", "2.png"],
    ),
    ([{"type": "image"}, {"type": "text", "text": "a"}], "<image>\na", []),
]


@pytest.mark.parametrize(("parts", "text", "images"), PARTS)
def test_parts_of_a_content_are_read_in_their_order(parts: Any, text: str, images: list[str]) -> None:
    said = {"role": "Assistant", "content": [{"type": "text", "text": "yes"}]}
    system = {"role": "SYSTEM", "content": [{"type": "text", "text": "S"}]}
    record = parse_record({"messages": [system, {"role": "user", "content": parts}, said]}, "0")
    assert (record.turns, record.images) == ([Turn("human", text), Turn("gpt", "yes")], images)
    assert record.system == "S"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"content": [{"type": "audio"}]},
            "a part of a user turn is {'type': 'audio'}, expected a text or an image",
        ),
        ({"content": [{"type": "text"}]}, "text of a user turn must be a string, found None"),
        ({"content": ["a"]}, "a part of a user turn is 'a', expected"),
        ({"content": [{"type": "image", "image": 3}]}, "image must be a file name"),
        ({"role": "system"}, "a turn of role system stands behind others"),
        ({"role": "robot"}, "a turn is from 'robot', expected one of human"),
    ],
)
def test_other_parts_and_places_of_a_system_turn_are_named(change: Any, message: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(SampleError, match=message):
        parse_record({"messages": [*turns, {"role": "user", "content": "c"} | change]}, "0")
    listed = {"role": "user", "content": [{"type": "image", "image": "1.png"}]}
    with pytest.raises(SampleError, match="found other images in the record than in its turns"):
        parse_record({"images": ["2.png"], "messages": [listed, turns[1]]}, "0")


def test_a_label_belongs_to_its_answer() -> None:
    turns = conversation("q", "a")
    turns[0]["label"] = turns[1]["label"] = "quality:9"
    assert parse_record({"conversations": turns}, "0").turns == [
        Turn("human", "q"),
        Turn("gpt", "a", "quality:9"),
    ]
    with pytest.raises(SampleError, match="the label of an answer must be a string, found 9"):
        parse_record({"conversations": [turns[0], turns[1] | {"label": 9}]}, "0")
