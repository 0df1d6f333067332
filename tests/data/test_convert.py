"""`neva data convert`: there and back without a loss, with the metadata that energon writes."""

from __future__ import annotations

import base64
import json
import sqlite3
import struct
import tarfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from neva import cli
from neva.data.media.files import MediaFiles
from neva.data.sources.energon import training_shards
from neva.data.sources.media_folder import MediaFolder
from neva.data.sources.source import Record, open_source
from tests.conftest import conversation, shared_data, write_records
from tests.data.test_webdataset import png, shades, texts, write_tar

RECORDS: list[dict[str, Any]] = [
    {
        "id": "x.1",
        "image": "a/0.png",
        "conversations": conversation("<image>\n何？", "赤", "c", "d"),
        "dataset": "one",
    },
    {
        "id": "x.1",
        "image": ["1.png", "a/0.png", "1.png"],
        "conversations": conversation("<image><image>?<image>", "b"),
    },
    {"id": "7", "system": "Be brief.", "conversations": conversation("no image", "b")},
]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/a/0.png").write_bytes(png(10))
    (tmp_path / "images/1.png").write_bytes(png(20))
    monkeypatch.chdir(tmp_path)
    return write_records(tmp_path / "data.json", RECORDS)


def run(*words: str) -> int:
    return cli.main(["data", "convert", *words])


def test_records_survive_the_way_to_shards_and_back(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data.json", "wds", "--image-folder", "images", "--samples-per-shard", "2") == 0
    assert capsys.readouterr().out == "wds: 3 records in 2 shards\n"
    records = open_source("wds")
    assert [records[index].id for index in range(3)] == ["x.1", "x.1", "7"]
    assert [shades(records[index]) for index in range(3)] == [[10], [20, 10, 20], []]
    assert records[2].system == "Be brief."
    for target in ("back.json", "lines.jsonl"):
        assert run("wds", target) == 0
        back = open_source(target)
        raw = [back.raw(index) for index in range(3)]  # type: ignore[attr-defined]
        assert raw == RECORDS
    assert (source.parent / "back_images/a/0.png").read_bytes() == png(10)
    assert (source.parent / "back_images/1.png").read_bytes() == png(20)


PARTS = [{"type": "image", "image": "a/0.png"}, {"type": "text", "text": "q"}]


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("d.json", {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "b"}]}),
        ("d.jsonl", {"conversations": conversation('<img src="x/1.png">q', "b"), "mask": "User"}),
        (
            "d.json",
            {
                "image": f"data:image/png;base64,{base64.b64encode(png(7)).decode()}",
                "conversations": conversation("<image>", "b"),
            },
        ),
        (
            "d.json",
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "b", "label": "good"},
                ]
            },
        ),
        ("d.json", {"conversations": conversation("q", "b"), "note": "half \ud83d"}),
    ],
    ids=["parts", "SteerLM", "data URI", "label", "half a character beside"],
)
def test_records_of_every_form_say_the_same_behind_the_way(
    name: str, record: dict[str, Any], source: Path
) -> None:
    text = json.dumps({"id": "7", **record})
    (source.parent / name).write_text(text if name.endswith("l") else f"[{text}]")
    assert run(name, "wds", "--image-folder", "images") == 0
    assert run("wds", "back.jsonl") == 0
    folders = {
        name: "images",
        "wds": None,
        "back.jsonl": "back_images" if Path("back_images").exists() else None,
    }
    expected, *others = (said(open_source(path)[0], folder) for path, folder in folders.items())
    assert others == [expected] * 2


def said(record: Record, folder: str | None) -> tuple[Any, ...]:
    files = MediaFiles(MediaFolder(folder, 1 << 20), fetched=None)
    return record.turns, record.system, [files.image(image).read_bytes() for image in record.images]


def test_a_folder_of_the_records_own_images_is_left_alone(source: Path) -> None:
    images = Path("images").rename("data_images")
    assert run("data.json", "lines.jsonl", "--image-folder", str(images)) == 0
    assert run("lines.jsonl", "data.json", "--image-folder", str(images), "--force") == 0
    assert (images / "a/0.png").read_bytes() == png(10)


def test_images_of_one_name_are_kept_apart(source: Path) -> None:
    for shard in range(2):
        members = {f"{n}.{part}": png(10 * shard + n) for n in range(2) for part in ("png",)}
        turns = {f"{n}.json": conversation("<image>", "b") for n in range(2)}
        write_tar(source.parent / f"wds/{shard}.tar", dict(sorted((members | turns).items())))
    assert run("wds", "back.json") == 0
    back = open_source("back.json")
    contents = [(source.parent / "back_images" / str(back[n].images[0])).read_bytes() for n in range(4)]
    assert contents == [png(0), png(1), png(10), png(11)]


def test_a_table_keeps_what_its_rows_say(source: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs neva[parquet]")
    parquet = pytest.importorskip("pyarrow.parquet")
    (source.parent / "tables/ai2d").mkdir(parents=True)
    turns = [
        {"from": "human", "value": "<image>", "label": None},
        {"from": "gpt", "value": "b", "label": "good"},
    ]
    rows = [
        {"image": {"bytes": png(n), "path": None}, "conversations": turns, "system": "S", "day": date.today()}
        for n in range(2)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), source.parent / "tables/ai2d/0.parquet")
    for target in ("wds", "back.json"):
        assert run("tables", target) == 0
        found = open_source(target)
        assert [found[n].turns for n in range(2)] == [open_source("tables")[n].turns for n in range(2)]
        assert found[0].system == "S" and found.record_index().dataset_counts() == {"ai2d": 2}  # type: ignore[attr-defined]
    assert [(source.parent / "back_images" / str(found[n].images[0])).read_bytes() for n in range(2)] == [
        png(0),
        png(1),
    ]


def test_a_target_is_replaced_only_when_asked_and_whole(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source.parent / "wds").mkdir()
    assert run("data.json", "wds", "--image-folder", "images") == 1
    assert "wds exists; choose another target, or pass --force" in capsys.readouterr().err
    assert run("data.json", "wds", "--image-folder", "images", "--force") == 0
    (source.parent / "images/1.png").unlink()
    assert run("data.json", "wds", "--image-folder", "images", "--force") == 1
    assert "data.json, record 1 (id 'x.1'): image file images/1.png cannot be read" in capsys.readouterr().err
    assert len(open_source("wds")) == 3
    assert sorted(path.name for path in source.parent.iterdir()) == ["data.json", "images", "wds"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "9,1"], "expected three numbers, such as 9,1,0"),
        (["--split", "0,1,0"], "the first above 0"),
        (["--samples-per-shard", "0"], "expected 1 or more"),
        (["--form", "vqa"], "record 0 (id 'x.1') has 1 images, 4 turns; energon's question"),
    ],
)
def test_what_cannot_be_written_is_refused(
    words: list[str], message: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data.json", "wds", "--image-folder", "images", *words) != 0
    assert message in capsys.readouterr().err
    assert not (source.parent / "wds").exists()


def test_question_and_answer_are_prepared_for_energon(source: Path) -> None:
    records = [
        {"id": f"{number:03}", "image": "1.png", "conversations": conversation("<image>\nq", f"a{number}")}
        for number in range(9)
    ]
    write_records(source, records)
    words = ["--form", "vqa", "--samples-per-shard", "2", "--prefix", "pretrain", "--split", "9,1,0"]
    assert run("data.json", "wds", "--image-folder", "images", *words) == 0
    folder = source.parent / "wds"
    assert [path.name for path in training_shards(folder)] == [
        f"pretrain-{number}.tar" for number in range(4)
    ]
    assert yaml.safe_load((folder / ".nv-meta/split.yaml").read_text())["split_parts"]["val"] == [
        "pretrain-4.tar"
    ]
    trained = open_source(folder)
    assert [trained[index].id for index in range(8)] == [f"{number:03}" for number in range(8)]
    assert texts(trained[5]) == ["<image>\nq", "a5"] and shades(trained[5]) == [20]
    assert_index_tells_where_members_lie(folder)


def assert_index_tells_where_members_lie(folder: Path) -> None:
    """energon's tables and its `.idx` against Python's own reader of tars."""
    with tarfile.open(folder / "pretrain-1.tar") as archive:
        members = list(archive)
    assert [member.name for member in members] == ["002.png", "002.json", "003.png", "003.json"]
    assert json.loads((folder / ".nv-meta/.info.json").read_text())["shard_counts"]["pretrain-4.tar"] == 1
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    offsets = [members[0].offset, members[2].offset, end]
    assert struct.unpack("<3Q", (folder / "pretrain-1.tar.idx").read_bytes()) == tuple(offsets)
    database = sqlite3.connect(folder / ".nv-meta/index.sqlite")
    samples = database.execute("SELECT * FROM samples WHERE tar_file_id = 1").fetchall()
    parts = database.execute(
        "SELECT * FROM sample_parts WHERE tar_file_id = 1 ORDER BY content_byte_offset"
    ).fetchall()
    database.close()
    assert samples == [(1, f"00{2 + n}", n, offsets[n], offsets[n + 1] - offsets[n]) for n in range(2)]
    assert parts == [(1, n // 2, m.name[4:], m.offset_data, m.size) for n, m in enumerate(members)]


def test_the_real_demo_goes_into_shards(tmp_path: Path) -> None:
    folder = shared_data("demo")
    records = json.loads((folder / "mllm_demo.json").read_text())
    for record in records:
        record["images"] = [name.replace("mllm_demo_data", "images") for name in record["images"]]
    path = write_records(tmp_path / "demo.json", records)
    assert run(str(path), str(tmp_path / "wds"), "--image-folder", str(folder)) == 0
    found, expected = open_source(tmp_path / "wds"), open_source(path)
    for index in range(len(records)):
        assert found[index].turns == expected[index].turns
        contents = [(folder / str(name)).read_bytes() for name in expected[index].images]
        assert [image.read_bytes() for image in found[index].images] == contents  # type: ignore[union-attr]
