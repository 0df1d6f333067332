"""LLaVA json and jsonl, and what is wrong with a broken one."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neva.data.sources.conversation import parse_record
from neva.data.sources.json import JsonSource
from neva.data.sources.source import Record, open_source
from neva.errors import DataError, SampleError
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
            r"must be a JSON list of records .* expected '\[' at character 0 \(line 1\), found '\{\"id\": 1\}'",
        ),
        ('[{"id": 1} {"id": 2}]', "expected ',' at character 11"),
        ('[{"id": 1}', "expected ','"),
        ('[{"id": 1},]', "is not valid JSON"),
        ("[{'id': 1}]", "is not valid JSON"),
        (f'[{{"id": 1{"0" * 5000}}}]', "is not valid JSON in the record at character 1 .*limit"),
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
    with pytest.raises(SampleError, match="not valid JSON") as raised:
        records.raw(1)
    assert raised.value.place == "line 2"


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
        ({"video": 1, "conversations": conversation("a", "b")}, "video must be a file name or a list"),
        (
            {"conversations": [{"from": ["gpt"], "value": "a"}]},
            r"a turn is from \['gpt'\], expected one of human",
        ),
        (
            {"system": 5, "conversations": conversation("a", "b")},
            "the system prompt must be a string, found 5",
        ),
        (
            {"system": {}, "conversations": conversation("a", "b")},
            "the system prompt must be a string, found {}",
        ),
        (
            {"system": [{"type": "text", "text": "x"}], "conversations": conversation("a", "b")},
            r"the system prompt must be a string, found \[\{'type'",
        ),
        (
            {"conversations": conversation("a\ud83d", "b")},
            r"text of a human turn holds \\ud83d at character 1, half",
        ),
        ({"system": "\udc00", "conversations": conversation("a", "b")}, r"the system prompt holds \\udc00"),
        ({"image": "\ud83d.png", "conversations": conversation("a", "b")}, r"the image name holds \\ud83d"),
        ({"id": "\ud83d", "conversations": conversation("a", "b")}, r"the id holds \\ud83d"),
        (
            {"System": "x", "conversations": conversation("a", "b")},
            "key 'System' is not read; expected 'system' or",
        ),
        (
            {"image_path": "x", "conversations": conversation("a", "b")},
            "key 'image_path' is not read; expected",
        ),
        (
            {"image": "a.png", "images": ["b.png"], "conversations": conversation("a", "b")},
            "found image and images, which say different things",
        ),
        (
            {"image": "s3://bucket/1.png", "conversations": conversation("a", "b")},
            "image must be a file name, found 's3://bucket/1.png'; save the image as a file",
        ),
        ({"image": 0, "conversations": conversation("a", "b")}, "image must be a file name or a list"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": []}]},
            r"text of a gpt turn must be a string, found \[\]",
        ),
        *(
            (
                {"messages": [asked, {"role": "assistant", "content": "b", key: value}]},
                f"says {key}={value}, which",
            )
            for asked in ({"role": "user", "content": "a", "weight": 0},)
            for key, value in (("weight", 0), ("weight", 0.0), ("loss", False), ("train", False))
        ),
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


NULLS = {"conversations": None, "image": None, "system": None, "id": None, "video": None, "videos": None}


@pytest.mark.parametrize(
    "raw",
    [
        {
            **NULLS,
            "messages": [{"role": "user", "content": "a"}, {"role": "gpt", "content": "b"}],
            "images": ["1.png"],
        },
        {
            "conversations": [
                {"from": None, "role": "user", "value": None, "content": "a"},
                {"role": None, "from": "gpt", "value": "b", "content": None},
            ],
            "messages": None,
            "image": "1.png",
            "images": None,
        },
        {"conversations": conversation("a", "b"), "messages": [], "image": "", "images": ["1.png"]},
    ],
)
def test_a_null_column_hides_no_synonym(raw: Any) -> None:
    assert parse_record(raw, "7") == Record("7", [Turn("human", "a"), Turn("gpt", "b")], ["1.png"], None)


def test_a_system_prompt_may_be_spelt_in_two_ways_or_be_the_first_turn() -> None:
    turn = {"from": "system", "value": "Be brief."}
    for raw in (
        {"system_prompt": "Be brief.", "conversations": conversation("a", "b")},
        {"system": "", "conversations": [turn, *conversation("a", "b")]},
        {"system": "Be brief.", "system_prompt": None, "conversations": [turn, *conversation("a", "b")]},
    ):
        assert parse_record(raw, "0").system == "Be brief."
    with pytest.raises(SampleError, match="found turn and record, which say different things"):
        parse_record({"system": "Be long.", "conversations": [turn, *conversation("a", "b")]}, "0")


def test_a_first_answer_without_a_question_is_dropped_as_in_llava() -> None:
    raw = {"conversations": [{"from": "gpt", "value": "Hello!"}, *conversation("a", "b")]}
    assert parse_record(raw, "0").turns == [Turn("human", "a"), Turn("gpt", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}][{"a": 2}]', r"goes on behind its list, at character 10 \(line 1\): '\[\{\"a\": 2"),
        ("[][1]", "goes on behind its list, at character 2"),
        ('[{"a": 1}] x', r"goes on behind its list, at character 11 \(line 1\): 'x'"),
        ("[" * 100_000, "is not valid JSON in the record at character 1"),
    ],
)
def test_what_follows_or_overflows_a_list_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(path)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named_with_its_remedy(name: str, encoding: str, tmp_path: Path) -> None:
    write_records(tmp_path / name, RECORDS)
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=rf"{name} is UTF-16, expected UTF-8; save it as such \(iconv"):
        open_source(tmp_path / name)


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes('[{"a": "漢字"}]'.encode("gbk"))
    with pytest.raises(DataError, match=r"data.json is not UTF-8 \(invalid start byte at byte 8\)"):
        open_source(path)
    path = tmp_path / "data.jsonl"
    path.write_bytes('{"a": 1}\n{"a": "漢字"}'.encode("gbk"))
    with pytest.raises(SampleError, match="not valid JSON: 'utf-8' codec can't decode"):
        open_source(path)[1]


def test_after_an_exclusion_records_keep_their_numbers_and_broken_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps({"conversations": conversation("a", "b")})
    left_out = json.dumps({"dataset": "text", "conversations": conversation("x", "y")})
    path.write_text("\n".join([left_out, "", good, '{"a":', good]))
    records = open_source(path, ["text"])
    assert [(records[index].id, records[index].place) for index in (0, 2)] == [
        ("2", "line 3"),
        ("4", "line 5"),
    ]
    with pytest.raises(SampleError, match="not valid JSON") as raised:
        records[1]
    assert raised.value.place == "line 4"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": NaN, "b": -Infinity}', {"a": math.nan, "b": -math.inf}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        ('{"a": "\\u0000"}', {"a": "\0"}),
        ("1e999", math.inf),
        ('{"a": 1} {"a": 2}', "Extra data"),
        ("[" * 100_000, "recursion"),
        ('{"a": 01}', "Expecting ',' delimiter"),
        ('{"a": "\t"}', "Invalid control character"),
        ("'a'", "Expecting value"),
    ],
)
def test_what_a_line_of_json_says_at_its_edges(text: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    records = JsonSource().open(path)
    if isinstance(value, str):
        with pytest.raises(SampleError, match=value):
            records.raw(0)
    else:
        assert repr(records.raw(0)) == repr(value)


KEYS = st.sampled_from(
    [
        "id",
        "image",
        "images",
        "conversations",
        "messages",
        "from",
        "role",
        "value",
        "content",
        "system",
        "video",
        "x",
    ]
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(["human", "gpt", "system", None, 3]), "value": st.text(max_size=5)}
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    JSON | st.fixed_dictionaries({"conversations": TURNS | JSON}, optional={"image": JSON, "system": JSON})
)
def test_any_json_value_is_a_record_or_a_bad_one(raw: Any) -> None:
    try:
        record = parse_record(raw, "0")
    except SampleError as error:
        assert "\n" not in str(error)
        return
    for text in (record.id, *record.images, *(turn.text or "" for turn in record.turns), record.system or ""):
        text.encode()
