"""What a JSON file of a checkpoint says at the edges of JSON, written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from neva.errors import CheckpointError
from neva.formats.json import parse_json, parse_object
from neva.formats.safetensors import TensorFile


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"a": NaN, "b": [Infinity, -Infinity]}', "{'a': nan, 'b': [inf, -inf]}"),
        (b"1e999", "inf"),
        (b"-0.0", "-0.0"),
        (b'{"a": 1, "b": 2, "a": 3}', "{'a': 3, 'b': 2}"),
        (b'{"a": "\\ud83d\\ude00"}', "{'a': '😀'}"),
        (b'\xef\xbb\xbf{"a": 1}', "{'a': 1}"),
        ('{"a": "漢"}'.encode("utf-16"), "{'a': '漢'}"),
        (b" [1]\n", "[1]"),
        (b"[" * 100 + b"]" * 100, "[" * 100 + "]" * 100),
        (b"9" * 4300, "9" * 4300),
    ],
)
def test_what_python_and_transformers_read_is_read(content: bytes, value: str) -> None:
    assert repr(parse_json(content, "x.json")) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.json is not valid JSON \(Expecting value"),
        (b'{"a": 1} {"b": 2}', r"not valid JSON \(Extra data: line 1 column 10"),
        (b'{"a": 1}x', r"not valid JSON \(Extra data"),
        (b'{"a": 1,}', r"not valid JSON \((Expecting|Illegal)"),
        (b'{"a": 01}', r"not valid JSON \(Expecting ',' delimiter"),
        (b"{'a': 1}", r"not valid JSON \(Expecting property name"),
        (b'{"a": "\t"}', r"not valid JSON \(Invalid control character"),
        (b'{"a": "\xff"}', r"not valid JSON \('utf-8' codec can't decode"),
        (b"9" * 4301, r"not valid JSON \(Exceeds the limit"),
        (b"[" * 100_000, r"not valid JSON \(maximum recursion"),
        (b"[" * 101 + b"]" * 101, r"x\.json is nested more than 100 levels deep"),
        (b'{"a": "\\ud83d"}', r"x\.json holds \\ud83d, half a character"),
    ],
)
def test_anything_else_is_one_sentence_that_names_the_file(content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        parse_json(content, "x.json")
    assert "\n" not in str(raised.value)


def test_a_file_that_should_hold_an_object_says_what_it_holds() -> None:
    with pytest.raises(CheckpointError, match=r"x\.json holds a list, expected an object with keys"):
        parse_object(b"[]", "x.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": 5}, r"says \{'dtype': 5, .* of a, expected dtype, shape and data_offsets"),
        ({"shape": [True, 3]}, "expected dtype, shape and data_offsets"),
        ({"shape": [2**62, 4]}, "a takes 24 bytes, its shape needs 73786976294838206464"),
        ({"shape": [3, 3]}, "a takes 24 bytes, its shape needs 36"),
        ({"data_offsets": [0, -1]}, "expected dtype, shape and data_offsets"),
        ({"data_offsets": [4, 28]}, "puts a at bytes 4 to 28, expected 0 and on"),
        ({"data_offsets": [0, 20]}, "a takes 20 bytes, its shape needs 24"),
    ],
)
def test_a_header_of_safetensors_must_place_each_tensor(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = save({"a": torch.ones(2, 3), "b": torch.zeros(1)})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["a"] |= change
    written = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + length :])
    with pytest.raises(CheckpointError, match=message) as raised:
        TensorFile(path)
    assert str(path) in str(raised.value)


def test_bytes_behind_the_last_tensor_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.ones(2, 3)}) + b"more")
    with pytest.raises(CheckpointError, match="its tensors end at byte .* and goes on behind them"):
        TensorFile(path)
