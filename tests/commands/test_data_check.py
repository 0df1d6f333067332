"""`neva data check`: everything that is broken or odd is found, named and counted."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from neva import cli
from tests.commands.test_dry_run import break_records, ready  # noqa: F401
from tests.conftest import random_image


def check(
    capsys: pytest.CaptureFixture[str], arguments: list[str], workers: int = 0
) -> tuple[int, list[str]]:
    remarks = ["--workers", str(workers), "--output", "remarks.jsonl", "--force"]
    code = cli.main(["data", "check", *arguments, *remarks])
    return code, capsys.readouterr().out.splitlines()


@pytest.fixture
def distinct(ready: list[str], tmp_path: Path) -> list[str]:  # noqa: F811
    """The 130 records, none of which is like another."""
    answers = [{"from": "gpt", "value": f"red {number}"} for number in range(130)]
    question = {"from": "human", "value": "<image>"}
    turns = {f"_{number}": {"conversations": [question, answer]} for number, answer in enumerate(answers)}
    break_records(tmp_path, **turns)
    return ready


def remarks_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "remarks.jsonl").read_text().splitlines()]


def test_whole_records_are_counted_and_end_with_0(
    distinct: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = check(capsys, distinct)
    assert code == 0
    assert lines[0].startswith("data.json: 130 records read in ")
    assert lines[1].startswith("130 samples: 130 with images, 0 of text alone; ")
    assert len(lines) == 2 and remarks_of(tmp_path) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_is_found_and_named(
    distinct: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    (tmp_path / "torn.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    records = json.loads((tmp_path / "data.json").read_text())
    human, long = {"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red " * 999}
    break_records(
        tmp_path,
        _1={"image": "gone.png"},
        _2={"image": "torn.png"},
        _3={"conversations": [{"from": "human", "value": "is"}, long]},
        _4={"conversations": [human, {"from": "gpt", "value": "red"}, human | {"value": "?"}]},
        _5={"conversations": 3},
        _6={"conversations": [human, long]},
        _126={"conversations": records[7]["conversations"]},
        _128={"image": "gone.png"},
        _127={"conversations": records[7]["conversations"], "image": "other/red.png"},
        _129={"conversations": records[7]["conversations"], "image": "copy.png"},
    )
    (tmp_path / "other").mkdir()
    random_image(20, 20).save(tmp_path / "other/red.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "red.png").read_bytes())
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    code, lines = check(capsys, distinct, workers)
    assert list((tmp_path / "temporary").iterdir()) == [], "workers and their sockets leave nothing"
    found = {remark["index"]: remark for remark in remarks_of(tmp_path)}
    assert code == 1
    assert {index: remark["kind"] for index, remark in found.items()} == {
        1: "missing image",
        2: "broken image",
        3: "unused image",
        4: "malformed record",
        5: "malformed record",
        6: "shortened",
        126: "duplicate",
        128: "missing image",
        129: "duplicate",
    }
    assert [found[index]["record_id"] for index in (1, 5, 129)] == ["1", "5", "129"]
    assert found[129]["message"] == "the same turns and images as record 7 (id '7')"
    assert found[2]["place"] == "record 2"
    counts = {line[:18].strip(): int(line[18:27]) for line in lines[4:]}
    assert counts == dict(Counter(remark["kind"] for remark in found.values()))
    assert any("data.json, record 1 (id '1'): image file gone.png does not exist" in line for line in lines)


def test_what_truncation_refuses_is_broken(
    distinct: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red " * 999}]
    break_records(tmp_path, _6={"conversations": turns})
    assert check(capsys, distinct)[0] == 0
    for policy in ("truncate_turns", "drop", "fail"):
        assert check(capsys, [*distinct, f"model.data.truncation={policy}"])[0] == 1
        assert [remark["kind"] for remark in remarks_of(tmp_path)] == ["too long"]


def test_the_actions_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "chek", "--config-name", "llava_7b_finetune"]) == 2
    assert "neva data chek: no such action; there are check" in capsys.readouterr().err


def test_what_is_held_out_is_checked_too_and_compared_with_what_trains(
    distinct: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "held_out.json").write_text(
        json.dumps([records[5] | {"id": "five"}, {"id": "gone", "image": "gone.png"}])
    )
    code, lines = check(capsys, [*distinct, "model.data.validation=held_out.json"])
    assert code == 1
    assert [(remark["record_id"], remark["kind"]) for remark in remarks_of(tmp_path)] == [
        ("five", "also trained"),
        ("gone", "malformed record"),
    ]
    assert "the same turns and images as record 5 (id '5') of data.json" in remarks_of(tmp_path)[0]["message"]
    assert any(line.startswith("held out of held_out.json: 2 records read in ") for line in lines)


def test_remarks_are_not_written_over_what_is_there(
    distinct: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "remarks.jsonl").write_text("mine")
    assert cli.main(["data", "check", *distinct, "--workers", "0", "--output", "remarks.jsonl"]) == 1
    assert "remarks.jsonl exists" in capsys.readouterr().err
    assert (tmp_path / "remarks.jsonl").read_text() == "mine"
