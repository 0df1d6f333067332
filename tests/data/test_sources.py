"""The source that reads a path: the first that accepts it, a user's own too."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neva.data import index
from neva.data.lengths import measure
from neva.data.sources import json as json_source
from neva.data.sources.mixture import content_of
from neva.data.sources.source import Record, open_source
from neva.errors import DataError, SampleError
from neva.formats.digest import file_digest
from neva.registry import SOURCES
from neva.templates.template import Turn
from tests.conftest import conversation, write_records
from tests.data.test_webdataset import png, shades


@dataclass(frozen=True)
class Lines:
    """A question and an answer a line, with a tab between."""

    path: Path

    def __len__(self) -> int:
        return len(self.path.read_text().splitlines())

    def __getitem__(self, index: int) -> Record:
        question, answer = self.path.read_text().splitlines()[index].split("\t")
        return Record(str(index), [Turn("human", question), Turn("gpt", answer)], [], None)


class LinesSource:
    form = ".tsv (question, tab, answer)"

    def accepts(self, path: Path) -> bool:
        return path.suffix == ".tsv"

    def open(self, path: Path, datasets_exclude: Collection[str]) -> Lines:
        return Lines(path)


@pytest.fixture
def registered() -> Iterator[None]:
    SOURCES.register("lines", LinesSource())
    yield
    del SOURCES._members["lines"]


@pytest.mark.usefixtures("registered")
def test_a_source_from_outside_reads_its_own_suffix(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text("what?\tthis\nwho?\tme\n")
    records = open_source(path)
    assert (len(records), records.path) == (2, path)
    assert records[1] == Record("1", [Turn("human", "who?"), Turn("gpt", "me")], [], None)


def test_a_form_that_no_source_reads_is_an_error_with_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "data.orc").touch()
    with pytest.raises(
        DataError, match=r"data\.orc is of no form that neva reads; expected .*\.json \(a list\)"
    ):
        open_source(tmp_path / "data.orc")


@pytest.mark.parametrize(
    ("row", "texts", "reds"),
    [
        (
            {
                "images": [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": "b.png"}],
                "texts": [{"user": "q", "assistant": "a"}, {"user": "r", "assistant": "b"}],
            },
            ["<image>\n<image>\nq", "a", "r", "b"],
            [1, 2],
        ),
        (
            {
                "image": {"bytes": png(3), "path": "x.png"},
                "conversations": conversation("<image>q", "a"),
                "id": "7",
            },
            ["<image>q", "a"],
            [3],
        ),
        ({"image": None, "conversations": conversation("q", "a")}, ["q", "a"], []),
        ({"image": {"bytes": None, "path": None}, "conversations": conversation("q", "a")}, ["q", "a"], []),
        (
            {
                "images": [{"bytes": png(4), "path": "x.png"}],
                "messages": [
                    {"role": "user", "content": [{"type": "image", "image": "x.png", "text": None}]},
                    {"role": "assistant", "content": [{"type": "text", "image": None, "text": "a"}]},
                ],
            },
            ["<image>", "a"],
            [4],
        ),
    ],
)
def test_published_tables_are_read_by_row(
    row: dict[str, Any], texts: list[str], reds: list[int], tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs neva[parquet]")
    parquet = pytest.importorskip("pyarrow.parquet")

    rows = [row | {"id": f"r{number}"} for number in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=2)
    records = open_source(tmp_path / "t.parquet")
    found = records[3]
    assert (len(records), found.id, found.place) == (5, "r3", "t.parquet, row group 1, row 1")
    assert [turn.text for turn in found.turns] == texts and shades(found) == reds
    assert measure(records, 1).images.tolist() == [len(reds)] * 5
    for subset in ("one", "two"):
        (tmp_path / "all" / subset).mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows[:3]), tmp_path / "all" / subset / "0.parquet")
    assert len(open_source(tmp_path / "all")) == 6
    two = open_source(tmp_path / "all", ["one"])
    assert (len(two), two[0].place) == (3, "two/0.parquet, row group 0, row 0")


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs neva[parquet]")
    (tmp_path / "t.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as a table \("):
        open_source(tmp_path / "t.parquet")


def test_steerlm_s_images_stand_in_the_text(tmp_path: Path) -> None:
    turns = conversation(
        "see <img src=\"http://x/y/1.png\" alt=''> and <IMG src='2.jpg'/>?", "a <b> <img src='3.jpg'>"
    )
    rows = [
        {"system": "Be kind.", "mask": "User", "conversations": turns},
        {"image": "3.png", "conversations": conversation('<image> what is <img src="x">?', "b")},
        {"mask": "Assistant", "conversations": turns},
    ]
    records = open_source(write_records(tmp_path / "data.jsonl", rows))
    first = records[0]
    assert (first.images, first.system) == (["1.png", "2.jpg"], "Be kind.")
    assert [turn.text for turn in first.turns] == ["see <image> and <image>?", "a <b> <img src='3.jpg'>"]
    assert records[1].images == ["3.png"] and records[1].turns[0].text == '<image> what is <img src="x">?'
    with pytest.raises(SampleError, match="masked for Assistant, expected mask=User"):
        records[2]
    assert measure(records, 1).images.tolist() == [2, 1, 2]


def test_an_index_is_made_once_and_again_for_other_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"dataset": "ab"[number % 2], "conversations": conversation("q " * number, "a")}
        for number in range(9)
    ]
    path = write_records(tmp_path / "data.json", rows)
    monkeypatch.setattr(index, "SMALL", 0)
    expected = [records.turns for records in map(open_source(path).__getitem__, range(9))]
    monkeypatch.setattr(json_source, "_scan", lambda *_: pytest.fail("the index is made again"))
    again = open_source(path)
    assert [record.turns for record in map(again.__getitem__, range(9))] == expected
    assert [open_source(path, ["a"])[number].turns for number in range(4)] == expected[1::2]
    assert content_of(again) == file_digest(path)
    monkeypatch.undo()
    monkeypatch.setattr(index, "SMALL", 0)
    write_records(path, rows[:5])
    assert len(open_source(path)) == 5
    assert len(list((tmp_path / "data.json.neva").glob("records-*"))) == 1
