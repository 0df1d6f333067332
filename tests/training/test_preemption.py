"""SIGTERM: the run saves, ends with the code that says so, and goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from neva.config.load import load
from neva.training import run as run_module
from neva.training.callbacks import Progress, read_metrics


def train(folder: Path, overrides: list[str]) -> Path:
    fixed = [f"exp_manager.exp_dir={folder}", "exp_manager.name=run", "trainer.max_steps=7"]
    return run_module.train(load("quickstart_finetune", [*overrides, *fixed]))


def test_a_run_that_is_told_to_stop_saves_and_continues_bit_for_bit(
    tmp_path: Path, colours: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminated(Progress):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            super().on_train_batch_end(trainer, *arguments)
            if trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(run_module, "Progress", Terminated)
        train(tmp_path / "stopped", colours)
    assert stopped.value.code == run_module.PREEMPTED == os.EX_TEMPFAIL
    assert signal.getsignal(signal.SIGTERM) == before
    assert [row["step"] for row in read_metrics(tmp_path / "stopped" / "run")] == [1, 2, 3, 4]

    found = read_metrics(train(tmp_path / "stopped", colours))
    expected = read_metrics(train(tmp_path / "unbroken", colours))
    assert [row["step"] for row in found] == list(range(1, 8))
    for name in ("loss", "lr", "grad_norm", "consumed_samples"):
        assert [row[name] for row in found] == [row[name] for row in expected]
