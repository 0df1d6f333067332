"""SIGTERM: the run saves, ends with the code that says so, and goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from neva.config.load import load
from neva.training import run as run_module
from neva.training.callbacks import METRICS, Progress, read_metrics
from tests.megatron import launcher_free


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


def test_a_signal_to_all_processes_of_a_run_leaves_it_the_workers_that_it_needs(
    tmp_path: Path, colours: list[str]
) -> None:
    """As schedulers send it, and timeout(1)."""
    fixed = [f"exp_manager.exp_dir={tmp_path}", "exp_manager.name=run", "trainer.max_steps=100000"]
    command = [
        sys.executable,
        "-m",
        "neva",
        "train",
        "--config-name",
        "quickstart_finetune",
        *colours,
        *fixed,
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "model.data.num_workers=2"],
            env={**launcher_free(os.environ), "OMP_NUM_THREADS": "1"},
            stderr=log,
            start_new_session=True,
        )
        metrics, stop = tmp_path / "run" / METRICS, time.monotonic() + 200
        while (
            not (metrics.exists() and metrics.read_text())
            and process.poll() is None
            and time.monotonic() < stop
        ):
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(100)
    assert code == run_module.PREEMPTED, (tmp_path / "log").read_text()[-3000:]
    (saved,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir()]
    assert f"step={len(read_metrics(tmp_path / 'run'))}-" in saved
