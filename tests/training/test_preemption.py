"""Told to stop, a run saves, ends with the code that says so, and goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from neva.config.load import load
from neva.training import run as run_module
from neva.training.callbacks import METRICS, Progress, read_metrics
from neva.training.stopping import INTERRUPTED, PREEMPTED
from tests.megatron import launcher_free


def train(folder: Path, overrides: list[str]) -> Path:
    fixed = [f"exp_manager.exp_dir={folder}", "exp_manager.name=run", "trainer.max_steps=7"]
    return run_module.train(load("quickstart_finetune", [*overrides, *fixed]))


def test_a_run_that_is_told_to_stop_saves_and_continues_bit_for_bit(
    tmp_path: Path, colours: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []

    def stopped(number: int, step: int) -> Any:
        class Told(Progress):
            def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
                super().on_train_batch_end(trainer, *arguments)
                if trainer.global_step == step:
                    os.kill(os.getpid(), number)
                    heard.append(signal.getsignal(signal.SIGINT))

        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = [signal.getsignal(number) for number in numbers]
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as raised:
            patched.setattr(run_module, "Progress", Told)
            train(tmp_path / "stopped", [*colours, *background])
        assert [signal.getsignal(number) for number in numbers] == before
        return raised.value.code

    background = ["exp_manager.checkpoint_callback_params.async_save=true"]
    background += ["exp_manager.checkpoint_callback_params.every_n_train_steps=2"]
    assert stopped(signal.SIGUSR1, 3) == PREEMPTED == os.EX_TEMPFAIL
    assert stopped(signal.SIGINT, 4) == INTERRUPTED == 130
    assert heard[1] == signal.SIG_DFL, "Ctrl-C again ends the process at once"
    assert [row["step"] for row in read_metrics(tmp_path / "stopped" / "run")] == [1, 2, 3, 4]

    found = read_metrics(train(tmp_path / "stopped", [*colours, *background]))
    expected = read_metrics(train(tmp_path / "unbroken", colours))
    assert [row["step"] for row in found] == list(range(1, 8))
    for name in ("loss", "lr", "grad_norm", "consumed_samples"):
        assert [row[name] for row in found] == [row[name] for row in expected]


def test_a_signal_to_each_process_of_a_run_leaves_it_the_workers_that_it_needs(
    tmp_path: Path, colours: list[str]
) -> None:
    """As a scheduler sends it that knows the processes of its job, and killpg besides."""
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
        process = psutil.Popen(
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
        workers = process.children(recursive=True)
        assert len(workers) >= 2
        for each in (*workers, process):
            each.send_signal(signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(100)
    assert code == PREEMPTED, (tmp_path / "log").read_text()[-3000:]
    assert not [
        worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    ]
    (saved,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if not path.is_symlink()]
    assert f"step={len(read_metrics(tmp_path / 'run'))}-" in saved
