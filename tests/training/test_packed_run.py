"""A whole run on packed samples: what it logs, counts and says, and that it resumes exactly."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from neva.constants import WASTE_VALUES
from neva.data.ledger import LedgerPart, LedgerStep, read_ledger
from neva.data.ledger_proof import prove
from neva.training.callbacks import read_metrics
from tests.training.test_run import Kill, kill_after, run


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What neva logs. (NeMo changes the level of `caplog`'s handler, which pytest gives to its logger too.)"""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger, before = logging.getLogger("neva"), logging.getLogger("neva").level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_a_packed_run_counts_samples_and_resumes_exactly(
    tmp_path: Path, colours: list[str], told: list[str]
) -> None:
    packed = [
        *colours,
        "model.data.packed_sequence=true",
        "model.global_batch_size=2",
        "model.micro_batch_size=1",
        "model.drop_last=false",
        "trainer.max_steps=-1",
        "trainer.max_epochs=4",
        "exp_manager.checkpoint_callback_params.every_n_train_steps=2",
    ]
    unbroken = run(tmp_path / "a", packed, steps=-1)
    rows = read_metrics(unbroken)
    (packs,) = {line for line in told if "packs of 128 positions" in line}
    num_packs = int(packs.split(" samples in ")[1].split()[0])
    assert packs.startswith("10 samples in ") and 1 < num_packs < 6
    assert len(rows) == 4 * num_packs // 2
    if num_packs % 2 == 0:
        assert rows[-1]["consumed_samples"] == 40
    assert all({*WASTE_VALUES} <= set(row) for row in rows)
    assert all(0 < row["label_share"] < row["image_share"] + row["label_share"] < 1 for row in rows)
    (line,) = [line for line in told if "% padding" in line]
    assert "image tokens" in line and "waited for the loader" in line and "packed_sequence" not in line
    with pytest.raises(Kill):
        kill_after(3, tmp_path / "b", packed)
    resumed = read_metrics(run(tmp_path / "b", packed, steps=-1))
    for name in ("loss", "grad_norm", "consumed_samples"):
        assert [row[name] for row in resumed] == [row[name] for row in rows]
    ledgers = [[*read_ledger(tmp_path / name / "run")] for name in "ab"]
    assert [len([e for e in ledger if isinstance(e, LedgerPart)]) for ledger in ledgers] == [1, 2]
    first, second = ([e for e in ledger if isinstance(e, LedgerStep)] for ledger in ledgers)
    assert first == second
    found = [finding.text for finding in prove(ledgers[1])]
    assert found == [f"epoch {number}: 10 of 10 samples, each once" for number in range(4)]


def test_an_unpacked_run_says_what_packing_would_give(
    tmp_path: Path, colours: list[str], told: list[str]
) -> None:
    run(tmp_path, [*colours, "model.data.pad_to_multiple_of=128"], steps=2)
    (line,) = [line for line in told if "% padding" in line]
    # 8 samples in 8 rows of 128 positions
    assert line.startswith("1,024 positions: ")
    assert "with model.data.packed_sequence=true the same samples would take" in line
