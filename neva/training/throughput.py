"""How much a run computes, and how much of what its devices could: FLOPs by part, FLOP/s, MFU."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from neva.data.batch import Batch
from neva.planner.devices import peak_flops
from neva.planner.flops import Flops, StepWork, step_flops, total
from neva.planner.job import model_spec, recomputed_share
from neva.training.callbacks import Aside
from neva.training.step import StepLoss

logger = logging.getLogger(__name__)

FORMULA = (
    "2 x weights x tokens + 4 x pairs seen x heads x head size; thrice where weights train, twice where gradients "
    "pass; padding, what nobody reads of the last layer, and what is computed again do not count"
)


class Throughput(Callback):
    """Logs `tflops` (a second, of all devices) and `mfu` of each step, and at the end where the operations went.

    Args:
        cfg: the resolved tree.
        asides: what a run does between steps, whose time is not counted.
    """

    def __init__(self, cfg: DictConfig, asides: Sequence[Aside]) -> None:
        self.model = model_spec(cfg.model)
        self.recompute = cfg.model.activations_checkpoint_granularity
        self.recomputed_share = recomputed_share(cfg.model)
        self.asides = asides
        self.peak = peak(cfg)
        self.parts: dict[str, Flops] = {}
        self.seconds = self.last_s = 0.0
        self.step, self.found = -1, dict[str, float]()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.last_s = self._training_s()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: list[Batch], batch_idx: int
    ) -> None:
        """Counts one step; the first is not timed, in which kernels are chosen and buffers made."""
        step: StepLoss = pl_module.last_step  # type: ignore[assignment]
        parts = step_flops(
            self.model,
            work_of(batch, step, self.model.vision.patch_size, self.model.language.ends_early),
            self.recompute,
            self.recomputed_share,
        )
        now, is_first = self._training_s(), self.step < 0
        seconds, self.last_s = now - self.last_s, now
        self.step = trainer.global_step
        if is_first:
            return
        self.seconds += seconds
        self.parts = {name: total([flops, self.parts.get(name, Flops())]) for name, flops in parts.items()}
        flops_per_s = total(parts.values()).model / max(seconds, 1e-9)
        self.found = {"tflops": flops_per_s / 1e12}
        if self.peak is not None:
            self.found["mfu"] = flops_per_s / (self.peak * trainer.world_size)
        for log in trainer.loggers:
            log.log_metrics(self.found, self.step - 1)

    def values(self, step: int) -> dict[str, float]:
        """Returns what was measured of this step."""
        return self.found if step == self.step else {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says it, on one rank."""
        if trainer.is_global_zero and self.seconds > 0:
            logger.info("%s", self.report(trainer.world_size))

    def report(self, devices: int) -> str:
        """Returns what the run computed, part by part, and the formula."""
        whole = total(self.parts.values())
        per_s = whole.model / self.seconds / devices
        of_peak = f", {per_s / self.peak:.1%} of the peak (MFU)" if self.peak else ""
        again = f"; {whole.recomputed / whole.model:.1%} more is computed again" if whole.recomputed else ""
        shares = ", ".join(
            f"{name.replace('_', ' ')} {flops.model / whole.model:.1%}" for name, flops in self.parts.items()
        )
        return f"{per_s / 1e12:.3g} TFLOP/s on each device{of_peak}: {shares}{again} ({FORMULA})"

    def _training_s(self) -> float:
        return time.monotonic() - sum(aside.seconds for aside in self.asides)


def peak(cfg: DictConfig) -> float | None:
    """Returns the peak FLOP/s of a device: what the recipe says, else that of the GPU; None: neither is known."""
    given = cfg.trainer.get("peak_tflops")
    if given is not None:
        return float(given) * 1e12
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def work_of(batch: Sequence[Batch], step: StepLoss, patch_size: int, ends_early: bool) -> StepWork:
    """Returns what the global batch computes: this rank's samples and tiles, as often as the ranks together have them.

    Lengths and shapes of the other ranks are taken to be distributed alike.
    """
    samples: Counter[int] = Counter()
    tiles: Counter[int] = Counter()
    unread: Counter[int] = Counter()
    for micro in batch:
        rows = micro.sample_lengths or [[micro.input_ids.shape[1]]] * len(micro.input_ids)
        for row in rows:
            samples.update(row)
        if ends_early and micro.packed_lengths is None:
            first = micro.first_label
            unread.update(min(first, *row) for row in rows)
        elif ends_early:
            unread.update(prefix - 1 for row in micro.prefix_lengths for prefix in row)
        square: tuple[int, ...] = micro.pixel_values.shape[-2:]
        pictures: Sequence[tuple[int, ...]] = micro.pictures or [square] * len(micro.pixel_values)
        tiles.update((height // patch_size) * (width // patch_size) for height, width, *_ in pictures)
    by_tokens = step.num_tokens / max(1, sum(micro.num_tokens for micro in batch))
    by_images = step.num_image_tokens / max(1, sum(micro.num_image_tokens for micro in batch))
    return StepWork(
        {length: number * by_tokens for length, number in samples.items()},
        step.num_label_tokens,
        {patches: number * by_images for patches, number in tiles.items()},
        {first: number * by_tokens for first, number in unread.items() if first},
    )
