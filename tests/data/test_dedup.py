"""`neva data dedup`: near-duplicates against Jaccard similarities that a plain loop counts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from neva import cli
from neva.data.dedup import shingles
from neva.data.sources.source import Record, open_source
from neva.templates.template import Turn
from tests.conftest import conversation, write_records


def text(*words: str) -> Record:
    return Record("", [Turn("human", " ".join(words)), Turn("gpt", "x")], [], None)


def test_shingles_are_runs_of_words_or_of_characters() -> None:
    assert shingles(text("A", "b", "c"), 3) == {"a b c", "b c x"}
    assert shingles(text("a"), 3) == {"a x"}
    assert shingles(Record("", [Turn("human", "東京" * 12)], [], None), 3) == {"東京東", "京東京"}


def test_near_duplicates_are_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasketch", reason="needs neva[dedup]")
    draw = random.Random(0)
    originals = [[f"w{draw.randrange(500)}" for _ in range(60)] for _ in range(30)]
    copies = [
        [*words[:30], "changed", *words[31:]] for words in originals[:5]
    ]  # 3 of 61 shingles differ: 0.906
    others = [[*words[:20], *originals[number + 10][20:]] for number, words in enumerate(originals[:5])]
    rows = [
        {"id": f"r{number}", "image": "1.png", "conversations": conversation("<image>", " ".join(words))}
        for number, words in enumerate([*originals, *copies, *others])
    ]
    rows.append({**rows[2], "id": "other image", "image": "2.png"})
    rows.append({"id": "broken"})
    path = write_records(tmp_path / "data.json", rows)
    words = [
        "data",
        "dedup",
        str(path),
        str(tmp_path / "new.jsonl"),
        "--table",
        str(tmp_path / "table.jsonl"),
    ]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.endswith("37 of 42 records, 5 near-duplicates left out\n")
    table = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [(row["index"], row["of_index"]) for row in table] == [(30 + n, n) for n in range(5)]
    records = open_source(path)
    for row in table:
        one, other = (shingles(records[row[key]], 3) for key in ("index", "of_index"))
        assert row["similarity"] == pytest.approx(
            len(one & other) / len(one | other), abs=0.12
        )  # 4 sigma of 128
    kept = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert kept == [row for number, row in enumerate(rows) if number not in range(30, 35)]
    assert cli.main([*words[:3], str(tmp_path / "new.json"), "--ignore-images"]) == 0
    assert len(json.loads((tmp_path / "new.json").read_text())) == 36
    assert cli.main(words) == 1
    assert "exists; choose another target, or pass --force" in capsys.readouterr().err
    assert cli.main([*words, "--threshold", "2"]) == 2
