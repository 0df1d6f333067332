"""Optimizer steps of a run before it starts, and whether the learning rate gets to decay in them."""

from __future__ import annotations

from omegaconf import DictConfig

from neva.config.derive import total_steps
from neva.config.layout import data_parallel_size
from neva.config.validate import world_size
from neva.data.global_batch import require_passes
from neva.errors import ConfigError
from neva.findings import Findings


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


def find_steps(cfg: DictConfig, num_samples: int | None, found: Findings) -> int | None:
    """Adds the optimizer steps of the run, with a note when warmup takes all of them.

    Returns:
        The steps, None when they follow from data that is not there.
    """
    steps = _steps(cfg, num_samples, found)
    sched = cfg.model.optim.sched
    if steps is not None and sched.warmup_steps + sched.constant_steps >= steps:
        found.notes.append(
            f"warmup ({sched.warmup_steps}) and constant steps ({sched.constant_steps}) fill all {steps} steps: the "
            "learning rate never decays along the cosine"
        )
    return steps


def _steps(cfg: DictConfig, num_samples: int | None, found: Findings) -> int | None:
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
            steps = total_steps(trainer, num_samples, batch, cfg.model.drop_last)
            require_passes(cfg.model.data.dataloader_type, num_samples, num_samples // batch, steps)
    except ConfigError as error:
        found.problems.append(str(error))
        return None
    found.add("steps", f"{steps:,} in all ({steps * batch:,} {what}), {per_epoch} in an epoch")
    return steps
