"""What a step came to: its figures, as the log has them, and what it did with its samples, as the ledger does."""

from __future__ import annotations

from neva.data.ledger import LEARNT, NOT_FINITE, OVERFLOW, SKIPPED
from neva.optim.lightning_adapter import LightningOptimizerAdapter
from neva.training.step import StepLoss


def treatment_of(optimizer: LightningOptimizerAdapter, is_skipped: bool) -> int:
    """Returns what a step did with its samples, as the ledger says it."""
    if is_skipped:
        return SKIPPED
    if optimizer.skips_next or not optimizer.is_finite:
        return NOT_FINITE
    return LEARNT if optimizer.has_updated else OVERFLOW


def figures_of(
    loss: StepLoss,
    optimizer: LightningOptimizerAdapter,
    lr: float,
    epoch: int,
    consumed_samples: int,
    loader_wait_s: float,
) -> dict[str, float]:
    """Returns what every step logs.

    Args:
        loss: of the global batch.
        optimizer: which has taken the step.
        lr: learning rate of the step.
        epoch: that its first sample is of, from 0; of Lightning's epochs a run has one.
        consumed_samples: by this step and all before it.
        loader_wait_s: how long its batch was waited for.
    """
    return {
        "loss": loss.mean,
        "lr": lr,
        "grad_norm": optimizer.grad_norm,
        "label_tokens": float(loss.num_label_tokens),
        "epoch": float(epoch),
        "consumed_samples": float(consumed_samples),
        "pad_share": 1 - loss.num_tokens / loss.num_positions,
        "image_share": loss.num_image_tokens / loss.num_positions,
        "label_share": loss.num_label_tokens / loss.num_positions,
        "loader_wait_s": loader_wait_s,
        **optimizer.loss_scale(),
    }
