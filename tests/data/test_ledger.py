"""The ledger as a file: what is written is read, half a record is none, and what a proof finds."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from neva.data.ledger import LEARNT, LEDGER, SKIPPED, LedgerPart, LedgerStep, LedgerWriter, read_ledger
from neva.data.ledger_proof import prove
from neva.errors import DataError

PART = LedgerPart(
    1, rows=5, samples=5, global_batch_size=2, drop_last=False, data={"records": 5, "content": "x"}
)
STEPS = [
    LedgerStep(1, 0, 2, LEARNT, [3, 1]),
    LedgerStep(2, 0, 2, SKIPPED, [0, 2]),
    LedgerStep(3, 0, 1, LEARNT, [4, 4]),
    LedgerStep(4, 1, 2, LEARNT, [2, 3], ((1, 0),)),  # record 0 gives no sample in epoch 1
    LedgerStep(5, 1, 2, LEARNT, [3, 2**33], ((1, 1),)),
]


def written(run: Path, steps: list[LedgerStep], part: LedgerPart = PART) -> Path:
    writer = LedgerWriter(run, 0)
    writer.begin(part)
    for step in steps:
        writer.add(step)
    writer.close()
    return run / LEDGER


def test_what_is_written_is_read_and_every_cut_leaves_the_whole_records(tmp_path: Path) -> None:
    path = written(tmp_path, STEPS)
    assert [*read_ledger(tmp_path)] == [PART, *STEPS]
    # 4 bytes a sample and 35 a step; wide numbers take 8
    assert path.stat().st_size == len("neva ledger 1\n") + 5 * 35 + 8 * 4 + 2 * 8 + 4 + 4 + 4 + 8 + _part(
        path
    )
    content = path.read_bytes()
    wholes = []
    for size in range(len(content)):
        path.write_bytes(content[:size])
        found = [*read_ledger(tmp_path)]
        assert found == [PART, *STEPS][: len(found)]
        wholes.append(len(found))
    assert wholes == sorted(wholes) and {*wholes} == {*range(6)}


def _part(path: Path) -> int:
    content = path.read_bytes()
    return 8 + int.from_bytes(content[14:18], "little")


def test_a_step_that_the_disk_does_not_take_leaves_the_ledger_whole(tmp_path: Path) -> None:
    path = written(tmp_path, STEPS[:2])
    writer, (soft, hard) = LedgerWriter(tmp_path, 2), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="."):
            writer.add(STEPS[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.add(STEPS[3])
    writer.close()
    assert [*read_ledger(tmp_path)] == [PART, *STEPS[:2], STEPS[3]]


def test_a_resume_cuts_what_comes_again_and_half_records(tmp_path: Path) -> None:
    path = written(tmp_path, STEPS[:4])
    with path.open("ab") as file:
        file.write(b"\x50\0\0\0half")
    writer = LedgerWriter(tmp_path, 2)
    writer.begin(PART)
    writer.add(STEPS[2])
    writer.close()
    assert [*read_ledger(tmp_path)] == [PART, *STEPS[:2], PART, STEPS[2]]
    again = LedgerWriter(tmp_path, 0)
    again.begin(PART)
    again.close()
    assert [*read_ledger(tmp_path)] == [PART]


def test_damage_in_the_middle_is_a_sentence(tmp_path: Path) -> None:
    path = written(tmp_path, STEPS[:2])
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"samples\.bin is damaged at byte 14 of "):
        LedgerWriter(tmp_path, 1)
    path.write_bytes(b"something else altogether")
    with pytest.raises(DataError, match="no ledger of this version"):
        [*read_ledger(tmp_path)]
    with pytest.raises(DataError, match="has no ledger"):
        [*read_ledger(tmp_path / "absent")]


def proof(tmp_path: Path, steps: list[LedgerStep], **part: object) -> list[str]:
    written(tmp_path, steps, LedgerPart(**{**vars(PART), **part}))  # type: ignore[arg-type]
    return [("! " if found.is_wrong else "") + found.text for found in prove(read_ledger(tmp_path))]


def test_each_sample_once_an_epoch_is_proven(tmp_path: Path) -> None:
    last = LedgerStep(5, 1, 2, LEARNT, [3, 1])
    assert proof(tmp_path, [*STEPS[:4], last]) == [
        "epoch 0: 5 of 5 samples, each once; 2 of them consumed and not learnt",
        "epoch 1: 5 of 5 samples, each once; 1 records gave no sample and were passed over",
    ]


def test_who_came_twice_or_never_is_named(tmp_path: Path) -> None:
    harmed = [*STEPS[:1], LedgerStep(2, 0, 2, LEARNT, [0, 1]), *STEPS[2:4]]
    assert proof(tmp_path, harmed)[:3] == [
        "! epoch 0 is not each sample once",
        "! epoch 0, more than once: records 1",
        "! epoch 0, never: records 2",
    ]
    assert proof(tmp_path, [*STEPS[:1], *STEPS[2:3]])[0] == "! steps 2 to 2 are not in it"
    assert proof(tmp_path, [*STEPS[:2], *STEPS[:1]])[0] == "! step 1 comes behind step 2"
    assert "! epoch 0, though the data set ends before: records 7" in proof(
        tmp_path, [LedgerStep(1, 0, 2, LEARNT, [3, 7])]
    )


def test_what_fills_no_global_batch_is_left_out_and_no_more(tmp_path: Path) -> None:
    begun = LedgerStep(3, 1, 2, LEARNT, [0, 1])
    assert proof(tmp_path, [*STEPS[:2], begun], drop_last=True) == [
        "epoch 0: 4 of 5 samples, each once; 1 left out, as model.drop_last leaves what fills no global batch; 2 of "
        "them consumed and not learnt",
        "epoch 1: 2 of 5 samples, each once; as far as step 3",
    ]
    early = [STEPS[0], LedgerStep(2, 1, 2, LEARNT, [0, 1])]
    assert "! epoch 0, never: records 0, 2, 4" in proof(tmp_path, early, drop_last=True)
