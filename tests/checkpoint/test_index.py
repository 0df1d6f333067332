"""The folder of a run's checkpoints as the list of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from neva.checkpoint.index import ABOUT, checkpoints, superseded


def checkpoint(folder: Path, step: int, saved: str, loss: float | None) -> Path:
    path = folder / f"run-step={step}-loss={loss}"
    path.mkdir(parents=True)
    told = {"step": step, "is_ranked": True, "logged": {"val_loss": loss}, "saved": saved}
    (path / ABOUT).write_text(json.dumps(told))
    return path


def test_a_clock_that_jumps_back_changes_no_order(tmp_path: Path) -> None:
    older = checkpoint(tmp_path, 5, "2031-01-01T00:00:00Z", 0.5)
    newer = checkpoint(tmp_path, 10, "1999-12-31T23:59:59Z", 0.4)
    os.utime(older, (2e9, 2e9))
    os.utime(newer, (1e9, 1e9))
    assert [one.path for one in checkpoints(tmp_path)] == [newer, older]


def test_the_best_stay_beside_the_newest(tmp_path: Path) -> None:
    losses = {1: 0.3, 2: 0.1, 3: None, 4: 0.2, 5: 0.9}
    found = {step: checkpoint(tmp_path, step, "", loss) for step, loss in losses.items()}

    def gone(top_k: int, keeps_newest: bool = True) -> set[int]:
        paths = superseded(found[5], "val_loss", "min", top_k, keeps_newest)
        return {step for step, path in found.items() if path in paths}

    assert gone(-1) == set()
    assert gone(2) == {1, 3}  # a loss that is no number is the worst
    assert gone(0) == {1, 2, 3, 4}
    assert gone(2, keeps_newest=False) == {1, 3, 4}
