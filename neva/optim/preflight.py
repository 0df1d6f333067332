"""Optimizer steps of a run before it starts, and whether the learning rate gets to decay in them."""

from __future__ import annotations

import math

from omegaconf import DictConfig

from neva.config.derive import Standing, total_steps
from neva.config.layout import data_parallel_size
from neva.config.validate import world_size
from neva.data.global_batch import require_passes
from neva.errors import ConfigError
from neva.findings import Findings
from neva.precision import FLOAT32


def find_batch(cfg: DictConfig, found: Findings) -> None:
    """Adds what a global batch is made of."""
    model = cfg.model
    replicas = data_parallel_size(model, world_size(cfg.trainer))
    accumulation = model.global_batch_size // (model.micro_batch_size * replicas)
    found.add(
        "global batch",
        f"{model.global_batch_size} = micro batch {model.micro_batch_size} x accumulation {accumulation} "
        f"x data parallel {replicas} ({cfg.trainer.num_nodes} x {cfg.trainer.devices} devices)",
    )


def find_steps(cfg: DictConfig, num_samples: int | None, standing: Standing, found: Findings) -> int | None:
    """Adds the optimizer steps of the run from where it is, with a note when warmup takes all of them.

    Returns:
        The steps, None when they follow from data that is not there.
    """
    steps = _steps(cfg, num_samples, standing, found)
    sched = cfg.model.optim.sched
    if steps is not None and sched.warmup_steps + sched.constant_steps >= steps:
        found.notes.append(
            f"warmup ({sched.warmup_steps}) and constant steps ({sched.constant_steps}) fill all {steps} steps: the "
            "learning rate never decays along the cosine"
        )
    return steps


def find_average(cfg: DictConfig, trained_parameters: int, steps: int | None, found: Findings) -> None:
    """Adds the moving average of the weights, where one is kept."""
    ema = cfg.exp_manager.ema
    if not ema.enable:
        return
    every = "every step" if ema.every_n_steps == 1 else f"every {ema.every_n_steps} steps"
    where = " in CPU memory" if ema.cpu_offload else ""
    found.add(
        "average",
        f"of the {trained_parameters:,} trained parameters, decay {ema.decay:g}, {every}: "
        f"{trained_parameters * FLOAT32.num_bytes / 1e9:,.1f} GB of float32{where}, sharded as the optimizer is; a "
        f"second .nemo",
    )
    reach = ema.every_n_steps / (1 - ema.decay) if ema.decay < 1 else math.inf
    if steps is not None and steps < reach:
        found.notes.append(
            f"exp_manager.ema.decay={ema.decay:g} averages over some {reach:,.0f} steps, the run has {steps:,}: "
            "the average will stay close to the first weights"
        )


def _steps(cfg: DictConfig, num_samples: int | None, standing: Standing, found: Findings) -> int | None:
    trainer, batch = cfg.trainer, cfg.model.global_batch_size
    what = "packs" if cfg.model.data.packed_sequence else "samples"
    per_epoch = "unknown" if num_samples is None else f"{num_samples // batch:,}"
    if num_samples is None and trainer.max_steps <= 0:
        found.add("steps", f"trainer.max_epochs={trainer.max_epochs}; the number follows from the data")
        return None
    try:
        if num_samples is None:
            steps = trainer.max_steps
        else:
            steps = total_steps(trainer, num_samples, batch, cfg.model.drop_last, standing)
            left_once = (num_samples - standing.offset) // batch if standing.epoch == 0 else 0
            require_passes(cfg.model.data.dataloader_type, num_samples, left_once, steps - standing.step)
    except ConfigError as error:
        found.problems.append(str(error))
        return None
    left = max(0, steps - standing.step)
    of_them = f", {standing.step:,} of them taken" if standing.step else ""
    found.add("steps", f"{steps:,} in all{of_them} ({left * batch:,} {what}), {per_epoch} in an epoch")
    return steps
