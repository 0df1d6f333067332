"""What a run shows and leaves behind: a progress line, a metrics file, a loss curve."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from neva.constants import LOGGED_VALUES, SOMETIMES_LOGGED, VALIDATION_LOSS, WASTE_VALUES
from neva.data.odd_records import ODDITIES
from neva.training.step import StepLoss

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CURVE = "loss.png"
_PLAIN_LINE_EVERY_S = 10.0
_WINDOW_STEPS = 50


class Measured(Protocol):
    """What measures something now and then."""

    def values(self, step: int) -> dict[str, float]:
        """Returns what was measured after this step; nothing when it was not due."""


class Aside(Measured, Protocol):
    """What a run does between two steps without training."""

    seconds: float
    """Spent so far."""


def plain(metrics: dict[str, Any], *names: str) -> dict[str, float]:
    """Returns the named metrics as numbers."""
    return {name: float(metrics[name]) for name in names if name in metrics}


class Progress(Callback):
    """A bar with loss, learning rate, gradient norm, samples/s, tokens/s and ETA; lines where there is no terminal."""

    def __init__(self, asides: Sequence[Aside]) -> None:
        self.asides = asides
        self.history: deque[tuple[float, int, int]] = deque(maxlen=1 + _WINDOW_STEPS)
        """Time, samples and tokens of each step; of the first the time alone counts, as its window begins there."""
        self.last_line_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar at the step that training starts from."""
        self.history.append((self._training_s(), 0, 0))
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            disable=not trainer.is_global_zero or not sys.stderr.isatty(),
            dynamic_ncols=True,
            desc="train",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar, or prints a line every few seconds."""
        if not trainer.is_global_zero:
            return
        step: StepLoss = pl_module.last_step  # type: ignore[assignment]
        self.history.append((self._training_s(), step.num_samples, step.num_tokens))
        values = self._values(trainer)
        self.bar.set_postfix(values, refresh=False)
        self.bar.update()
        if self.bar.disable and self._line_is_due(trainer):
            remaining_s = (trainer.max_steps - trainer.global_step) * self._seconds_per_step()
            shown = "  ".join(f"{name} {value}" for name, value in values.items())
            tqdm.write(
                f"step {trainer.global_step}/{trainer.max_steps}  {shown}  ETA {remaining_s:.0f}s", sys.stderr
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self.bar.close()

    def _training_s(self) -> float:
        """A clock that stands while a run validates or answers prompts."""
        return time.monotonic() - sum(aside.seconds for aside in self.asides)

    def _values(self, trainer: Trainer) -> dict[str, str]:
        metrics = plain(trainer.callback_metrics, "loss", "lr", "grad_norm", "pad_share")
        seconds, steps = self._seconds_per_step(), len(self.history) - 1
        samples, tokens = (
            sum(step[which] for step in islice(self.history, 1, None)) / steps for which in (1, 2)
        )
        return {
            "loss": f"{metrics['loss']:.4f}",
            "lr": f"{metrics['lr']:.2e}",
            "grad_norm": f"{metrics['grad_norm']:.2f}",
            "samples/s": f"{samples / seconds:.1f}",
            "tokens/s": f"{tokens / seconds:.0f}",
            "pad": f"{metrics['pad_share']:.0%}",
        }

    def _seconds_per_step(self) -> float:
        elapsed_s = self.history[-1][0] - self.history[0][0]
        return max(elapsed_s, 1e-9) / (len(self.history) - 1)

    def _line_is_due(self, trainer: Trainer) -> bool:
        now = time.monotonic()
        due = now - self.last_line_s >= _PLAIN_LINE_EVERY_S or trainer.global_step == trainer.max_steps
        self.last_line_s = now if due else self.last_line_s
        return due


class MetricsFile(Callback):
    """Appends each step's numbers to `metrics.jsonl` and draws the loss curve at the end, also over resumed runs."""

    def __init__(self, run_dir: Path, measured: Sequence[Measured]) -> None:
        self.run_dir = run_dir
        self.measured = measured
        self.file: TextIO | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the file; rows behind the step that is resumed from are dropped, since those steps come again.

        NeMo's exp_manager moves the files of earlier runs to `run_0`, `run_1`, … when it resumes.
        """
        if not trainer.is_global_zero:
            return
        earlier = sorted(self.run_dir.glob(f"run_*/{METRICS}"), key=_part)
        rows = (
            [row for row in read_metrics(earlier[-1].parent) if row["step"] <= trainer.global_step]
            if earlier
            else []
        )
        self.file = (self.run_dir / METRICS).open("w", buffering=1)
        self.file.writelines(json.dumps(row) + "\n" for row in rows)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Appends one row."""
        if self.file is not None:
            row = {
                "step": trainer.global_step,
                **plain(trainer.callback_metrics, *LOGGED_VALUES, *WASTE_VALUES, *SOMETIMES_LOGGED),
                **{
                    name: value
                    for source in self.measured
                    for name, value in source.values(trainer.global_step).items()
                },
                "time_s": time.time(),
            }
            with _told_only():
                self.file.write(json.dumps(row) + "\n")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the curve."""
        if self.file is not None:
            with _told_only():
                self.file.close()
            with _told_only():
                draw_loss_curve(self.run_dir)
            self.file = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draws the curve of a run whose time is up, which has no other end."""
        self.on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draws the curve of a run that failed: it may show why."""
        self.on_train_end(trainer, pl_module)


@contextmanager
def _told_only() -> Iterator[None]:
    """Warns where a disk takes no metrics, which is no reason to end a run; rows are written when it has room again."""
    try:
        yield
    except OSError as error:
        logger.warning("metrics cannot be written: %s", error)


def _part(path: Path) -> int:
    """Returns the number of the earlier part of a run that a file in `run_N` is of; times of files may lie."""
    number = path.parent.name.removeprefix("run_")
    return int(number) if number.isdecimal() else -1


class CheckpointLogger(Callback):
    """Says at which steps a checkpoint is saved (`checkpoint_callback_params.verbose`)."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """One line a checkpoint."""
        if trainer.is_global_zero:
            logger.info("saving a checkpoint at step %s", trainer.global_step)


class SkippedRecords(Callback):
    """Says at the end how many records were skipped, shortened or odd, on any rank, each counted once."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Unites what the ranks skipped and shortened; every rank takes part."""
        loader: Any = trainer.train_dataloader
        dataset = loader.batches.dataset.samples
        instead = "the next good one taken instead of each"
        if loader.batches.dataset.packs is not None:
            instead = "left out of the packs"
        happened = {
            f"skipped, {instead}": dataset.skipped,
            "cut to fit into model.encoder_seq_length": dataset.shortened,
            **{f"read as LLaVA does ({kind})": dataset.odd.of_kind(kind) for kind in ODDITIES},
        }
        for what, here in happened.items():
            anywhere = here.to(trainer.strategy.root_device, torch.uint8)
            dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
            count = int(anywhere.sum())
            if count and trainer.is_global_zero:
                logger.warning(
                    "%s of %s records were %s: %s",
                    f"{count:,}",
                    f"{len(dataset):,}",
                    what,
                    dataset.records.path,
                )


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Returns the rows of a run's metrics file, oldest first; a half-written last row is dropped."""
    path = run_dir / METRICS
    if not path.exists():
        return []
    complete = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in complete]


def draw_loss_curve(run_dir: Path) -> None:
    """Draws loss, validation loss and learning rate over steps to `loss.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in read_metrics(run_dir) if math.isfinite(row["loss"])]
    if not rows:
        return
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8)
    axes.plot(steps, smooth(losses), color="tab:blue", label="loss per label token (smoothed)")
    validated = [(row["step"], row[VALIDATION_LOSS]) for row in rows if VALIDATION_LOSS in row]
    if validated:
        axes.plot(
            *zip(*validated, strict=True), color="tab:red", marker="o", markersize=3, label="validation loss"
        )
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=run_dir.name)
    rate = axes.twinx()
    rate.plot(steps, [row["lr"] for row in rows], color="tab:orange", linewidth=1, label="learning rate")
    rate.set_ylabel("learning rate")
    figure.legend(loc="upper right", bbox_to_anchor=(0.9, 0.9))
    figure.savefig(run_dir / CURVE, dpi=120)
    plt.close(figure)


def smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Returns the bias-corrected exponential moving average."""
    smoothed, average = [], 0.0
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**count))
    return smoothed
