"""What goes wrong around a run: it ends or goes on in one sentence, and no step that was saved is lost."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neva.errors import CheckpointError, DataError
from neva.training import run as run_module
from neva.training.callbacks import read_metrics
from neva.training.validation import Validation
from tests.training.test_run import run

SAVING = ["every_n_train_steps=1", "save_top_k=1"]
LIMIT_BYTES = 1 << 15
"""More than the files beside the checkpoints take, less than a checkpoint does."""


def at_step(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[Any], None]]) -> None:
    """Has something happen behind steps, before the callbacks that save."""

    class Acting(Validation):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            super().on_train_batch_end(trainer, *arguments)
            actions.get(trainer.global_step, lambda _: None)(trainer)

    monkeypatch.setattr(run_module, "Validation", Acting)


def limit(size: int) -> Callable[[Any], None]:
    """Lets no file of this process grow beyond `size` bytes, as a full disk does."""
    return lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill_behind_the_save_before(trainer: Any) -> None:
    trainer.strategy.wait_for_save()
    limit(LIMIT_BYTES)(trainer)


def kill_worker(trainer: Any) -> None:
    os.kill(multiprocessing.active_children()[-1].pid or 0, signal.SIGKILL)


def test_a_run_outlives_a_killed_worker_a_vanished_folder_and_a_full_disk(
    tmp_path: Path, colours: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(next(word for word in colours if "image_folder" in word).partition("=")[2], images)
    saving = [f"exp_manager.checkpoint_callback_params.{word}" for word in SAVING]
    every = [*colours, *saving, f"model.data.image_folder={images}"]
    unbroken = [row["loss"] for row in read_metrics(run(tmp_path, every, steps=8, name="unbroken"))]
    gone = images.with_name("gone")

    at_step(monkeypatch, {2: kill_worker})
    killed = r"a data worker, process \d+, was ended from outside \((Killed|exited)\), .* the last checkpoint is whole"
    with pytest.raises(DataError, match=killed):
        run(tmp_path, [*every, "model.data.num_workers=1"], steps=8)
    torch.set_grad_enabled(True)  # torch raises wherever the run is, here it goes on in the same process

    at_step(monkeypatch, {4: lambda _: images.rename(gone)})
    with pytest.raises(DataError, match=r"no folder at \S+images any more"):
        run(tmp_path, every, steps=8)
    gone.rename(images)

    at_step(monkeypatch, {5: limit(LIMIT_BYTES), 7: limit(resource.RLIM_INFINITY)})
    try:
        with caplog.at_level(logging.WARNING):
            run_dir = run(tmp_path, every, steps=8)
    finally:
        limit(resource.RLIM_INFINITY)(None)
    warned = [record.getMessage() for record in caplog.records if "Training goes on" in record.getMessage()]
    assert [f"step={step}-" in text for step, text in zip((5, 6), warned, strict=True)] == [True, True]
    assert "(writing stopped: " in warned[0] and "what was saved before is whole" in warned[0]
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["loss"] for row in rows] == unbroken

    at_step(monkeypatch, {10: fill_behind_the_save_before})
    try:
        with pytest.raises(CheckpointError, match=r"step=10-\S+ needs .* .writing stopped: .* is whole$"):
            run(tmp_path, [*every, "exp_manager.checkpoint_callback_params.async_save=true"], steps=10)
    finally:
        limit(resource.RLIM_INFINITY)(None)
    left = {
        path.name.partition("step=")[2].partition("-")[0]
        for path in (run_dir / "checkpoints").glob("*-step=*")
    }
    assert left == {"8", "9"}
