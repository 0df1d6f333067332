"""What watches over a run: steps that are not learnt, a warning when the loss jumps, kernels of the same bits."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from neva.commands.data import main as data_command
from neva.config.load import load
from neva.data.ledger import LedgerStep, read_ledger
from neva.errors import ConfigError
from neva.training import callbacks
from neva.training.callbacks import read_metrics
from neva.training.determinism import VARIABLES
from neva.training.spike import SpikeAlert
from neva.training.step import StepLoss
from tests.training.test_run import Kill, kill_after, run, weights


def columns(run_dir: Path, *names: str) -> list[list[float]]:
    return [[row[name] for name in names] for row in read_metrics(run_dir)]


def steps_of(run_dir: Path) -> list[LedgerStep]:
    return [entry for entry in read_ledger(run_dir) if isinstance(entry, LedgerStep)]


def test_skipped_steps_take_their_samples_and_leave_no_trace(
    tmp_path: Path, colours: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    every = [*colours, "exp_manager.checkpoint_callback_params.every_n_train_steps=3"]
    skipping = [*every, "trainer.skip_steps=[[2,3],[5,5]]"]
    plain, skipped = run(tmp_path / "plain", every, steps=6), run(tmp_path / "skipped", skipping, steps=6)
    assert columns(skipped, "consumed_samples", "lr") == columns(plain, "consumed_samples", "lr")
    rows = read_metrics(skipped)
    assert [row["skipped"] for row in rows] == [0, 1, 1, 0, 1, 0]
    assert [row["grad_norm"] == 0 for row in rows] == [False, True, True, False, True, False]
    assert [row["loss"] for row in rows][:2] == [row["loss"] for row in read_metrics(plain)][:2]
    assert rows[2]["loss"] != read_metrics(plain)[2]["loss"]
    assert "skipped" not in read_metrics(plain)[0]

    only = run(tmp_path / "only", [*colours, "trainer.skip_steps=[[1,2]]"], steps=2)
    none = run(tmp_path / "none", [*colours, "trainer.skip_steps=[[1,1],[2,2]]"], steps=2)
    before, after = weights(only), weights(none)
    assert all(torch.equal(before[name], after[name]) for name in before)

    with pytest.raises(Kill):  # behind the checkpoint of step 3, whose optimizer has seen one step
        kill_after(4, tmp_path / "resumed", [*skipping, "trainer.max_steps=6"])
    resumed = run(tmp_path / "resumed", skipping, steps=6)
    assert columns(resumed, "loss", "grad_norm") == columns(skipped, "loss", "grad_norm")
    assert [step.treatment for step in steps_of(resumed)] == [0, 1, 1, 0, 1, 0]
    assert steps_of(resumed) == steps_of(skipped)
    assert [step.numbers for step in steps_of(skipped)] == [step.numbers for step in steps_of(plain)]
    assert_the_ledger_answers(resumed, colours, capsys)


def assert_the_ledger_answers(run_dir: Path, colours: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str, code: int = 0) -> str:
        assert data_command(["ledger", str(run_dir), *words]) == code
        return capsys.readouterr().out

    capsys.readouterr()
    assert "6 steps up to step 6, 24 samples, 2 starts" in said()
    step = said("--step", "2")
    assert step.startswith("step 2, epoch 0: 4 samples, consumed and not learnt (trainer.skip_steps)")
    for number in steps_of(run_dir)[1].numbers:
        name = str(number) if number < 8 else f"text{2 * number - 15}"
        assert f"{number}  id {name}, record {number}\n" in step and (number > 7 or f"{number}.png\n" in step)
    assert "human: <image>\nwhat colour is this?\n" in step
    first = next(number for number in steps_of(run_dir)[0].numbers if number < 8)
    assert said("--sample", str(first)).splitlines()[0] == f"step 1, epoch 0: record {first}, learnt"
    assert "no step of" in said("--sample", "absent", code=1)
    assert said("--verify").splitlines()[0] == (
        "epoch 0: 8 of 10 samples, each once; 2 left out, as model.drop_last leaves what fills no global batch; 4 of "
        "them consumed and not learnt"
    )
    with pytest.raises(ConfigError, match="--step 9: the ledger of .* does not have it; its last step is 6"):
        said("--step", "9")


@pytest.mark.parametrize("steps", ["[[3,2]]", "[[1]]", "[[0,2]]"])
def test_ranges_that_are_none_are_refused(steps: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer.skip_steps"):
        load("quickstart_finetune", [f"trainer.skip_steps={steps}"])


class Logger:
    """As much of W&B's as takes an alert."""

    def __init__(self) -> None:
        self.alerts: list[str] = []
        self.experiment = self

    def alert(self, title: str, text: str) -> None:
        self.alerts.append(text)


def test_a_jump_of_the_loss_is_said_once_with_step_and_samples(caplog: pytest.LogCaptureFixture) -> None:
    alert, logger = SpikeAlert(2.0), Logger()
    micro = type("Micro", (), {"record_ids": [f"r{number}" for number in range(10)]})
    with caplog.at_level(logging.WARNING):
        for step, loss in enumerate([1.0, 1.2, 0.8, 2.5, 1.0, 1.3], start=1):
            trainer: Any = type("T", (), {"is_global_zero": True, "global_step": step, "loggers": [logger]})
            module: Any = type("M", (), {"last_step": type("S", (), {"mean": loss})})
            alert.on_train_batch_end(trainer, module, None, [micro], step)
    (text,) = logger.alerts
    assert text.startswith(
        "loss 2.5000 at step 4 is 2.5 times the 1.0000 of the steps before; samples of rank 0: r0,"
    )
    assert "r7 and 2 more" in text and [record.message for record in caplog.records] == [text]


def test_rates_are_those_of_the_steps_they_are_measured_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    trainer: Any = type("T", (), {"is_global_zero": True, "global_step": 0, "max_steps": 120})
    trainer.callback_metrics = {"loss": 1.0, "lr": 1e-3, "grad_norm": 1.0, "pad_share": 0.0}
    module: Any = type("M", (), {"last_step": StepLoss(1.0, 1, 1, num_samples=40, num_tokens=3000)})
    progress = callbacks.Progress([])
    progress.on_train_start(trainer, module)
    for step in range(1, 121):  # half a second each
        clock[0], trainer.global_step = step / 2, step
        progress.on_train_batch_end(trainer, module, None, None, step)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 6 and all("samples/s 80.0  tokens/s 6000  " in line for line in lines)
    assert "step 80/120 " in lines[3] and lines[3].endswith("ETA 20s")


def test_a_deterministic_run_asks_for_such_kernels_while_it_lasts(
    tmp_path: Path, colours: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neva.training import run as run_module

    seen: list[tuple[bool, str | None]] = []
    fit = run_module._fit

    def look(*arguments: Any) -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        fit(*arguments)

    monkeypatch.setattr(run_module, "_fit", look)
    runs = [
        run(tmp_path / name, [*colours, "trainer.deterministic=true", "trainer.loss_spike_ratio=3"], steps=2)
        for name in "ab"
    ]
    assert seen == [(True, VARIABLES["CUBLAS_WORKSPACE_CONFIG"])] * 2
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    first, second = map(weights, runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
