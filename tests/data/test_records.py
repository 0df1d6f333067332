"""LLaVA json and jsonl, and what is wrong with a broken one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from neva.data.sources.json import JsonSource, parse_record
from neva.data.sources.source import Record, open_source
from neva.errors import SampleError
from neva.templates.template import Turn
from tests.conftest import conversation, image_record, shared_data, write_records

RECORDS: list[Any] = [
    image_record(0, "<image>\nWhat?", "A “cat”, 漢字 🙂"),
    {
        "id": "two",
        "image": ["a/1.png", "2.png"],
        "conversations": conversation("<image><image>", "b", "c", "d"),
    },
    {"conversations": conversation("no image", "b"), "dataset": "text"},
]
PARSED = [
    Record("id-0", [Turn("human", "<image>\nWhat?"), Turn("gpt", "A “cat”, 漢字 🙂")], ["0.png"], None),
    Record(
        "two",
        [Turn("human", "<image><image>"), Turn("gpt", "b"), Turn("human", "c"), Turn("gpt", "d")],
        ["a/1.png", "2.png"],
        None,
    ),
    Record("2", [Turn("human", "no image"), Turn("gpt", "b")], [], None),
]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_json_and_jsonl_give_the_same_records(name: str, tmp_path: Path) -> None:
    records = open_source(write_records(tmp_path / name, RECORDS))
    assert [records[index] for index in range(len(records))] == PARSED


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1},{"a": [2, "]"]}]',
        ' \n[ {"a":1} ,\n\n {"a":[2,"]"]}\n ]\n',
        '\ufeff[{"a": 1}, {"a": [2, "]"]}]',
    ],
)
def test_a_json_list_is_cut_into_its_items_however_it_is_laid_out(text: str, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(text, encoding="utf-8")
    records = JsonSource().open(path)
    assert [records.raw(index) for index in range(len(records))] == [{"a": 1}, {"a": [2, "]"]}]


def test_long_white_space_between_items_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(
        "[" + " " * 5000 + '{"a": 1}' + "\n" * 5000 + "," + " " * 3000 + '{"a": 2}' + " " * 2000 + "]"
    )
    assert len(open_source(path)) == 2


def test_blank_lines_of_a_jsonl_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"a": 1}\r\n  \n{"a": 2}')
    assert len(open_source(path)) == 2


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_excluded_datasets_are_left_out(name: str, tmp_path: Path) -> None:
    records = open_source(write_records(tmp_path / name, RECORDS), ["text", "other"])
    assert [records[index].id for index in range(len(records))] == ["id-0", "two"]
    with pytest.raises(ValueError, match="holds no record"):
        open_source(write_records(tmp_path / name, RECORDS[2:]), ["text"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"id": 1}',
            r"must be a JSON list of records .* expected '\[' at character 0, found '\{\"id\": 1\}'",
        ),
        ('[{"id": 1} {"id": 2}]', "expected ',' at character 11"),
        ('[{"id": 1}', "expected ','"),
        ('[{"id": 1},]', "is not valid JSON"),
        ("[{'id': 1}]", "is not valid JSON"),
        ("[]", "holds no record"),
        ("", "must be a JSON list"),
    ],
)
def test_a_broken_json_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        open_source(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.data\.data_path: no file at .*absent\.json"):
        open_source(tmp_path / "absent.json")


def test_a_broken_line_is_an_error_of_that_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 2}\n')
    records = JsonSource().open(path)
    assert records.raw(2) == {"a": 2}
    with pytest.raises(SampleError, match="not valid JSON"):
        records.raw(1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1], "must be an object with conversations, found list"),
        ({"id": "x"}, "conversations must be a list of turns, found None"),
        ({"conversations": []}, "conversations must be a list of turns"),
        ({"conversations": ["hello"]}, "a turn must be an object"),
        (
            {"conversations": [{"from": "robot", "value": "a"}]},
            "a turn is from 'robot', expected one of human",
        ),
        (
            {"conversations": [{"from": "human", "value": None}]},
            "text of a human turn must be a string, found None",
        ),
        ({"image": {"a": 1}, "conversations": conversation("a", "b")}, "image must be a file name or a list"),
        (
            {"image": ["a", None], "conversations": conversation("a", "b")},
            "image must be a file name or a list",
        ),
        ({"video": "1.mp4", "conversations": conversation("a", "b")}, "has a video; only images are read"),
    ],
)
def test_a_malformed_record_says_what_is_wrong(raw: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        parse_record(raw, "0")


def test_messages_with_role_and_content_are_read() -> None:
    raw = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>Who?"},
            {"role": "assistant", "content": "Me."},
        ],
        "images": ["1.jpg"],
    }
    turns = [Turn("human", "<image>Who?"), Turn("gpt", "Me.")]
    assert parse_record(raw, "7") == Record("7", turns, ["1.jpg"], "Be brief.")


def test_the_real_demo_conversations_are_read(tmp_path: Path) -> None:
    shutil.copy(shared_data("demo", "mllm_demo.json"), tmp_path)
    records = open_source(tmp_path / "mllm_demo.json")
    raw = json.loads(shared_data("demo", "mllm_demo.json").read_text())
    assert len(records) == len(raw)
    for index, expected in enumerate(raw):
        record = records[index]
        assert record.images == expected["images"]
        assert [turn.text for turn in record.turns] == [turn["content"] for turn in expected["messages"]]
        assert sum((turn.text or "").count("<image>") for turn in record.turns) == len(record.images)
