"""The loss of each source of a mixture while a run trains: `loss/NAME`, the same figure in every layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from neva.training.step import SourceLoss, StepLoss


def by_name(prefix: str, names: Sequence[str], sums: Sequence[SourceLoss]) -> dict[str, float]:
    """Returns the loss per label token as `prefix/NAME` of each source that has a label among what was summed."""
    return {
        f"{prefix}/{name}": of_source.loss_sum / of_source.num_label_tokens
        for name, of_source in zip(names, sums, strict=True)
        if of_source.num_label_tokens
    }


class SourceLosses(Callback):
    """Every `trainer.log_every_n_steps` steps, and after the last: the loss per label token of each source since then.

    It stands before the callbacks that write checkpoints and metrics. A checkpoint holds what was summed so far, so
    that a resumed run logs the same.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.names: list[str] = []
        self.sums: dict[str, SourceLoss] = {}
        self.step, self.losses = -1, dict[str, float]()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the names of the sources; there are none without a mixture, and nothing to do."""
        self.names = pl_module.source_names  # type: ignore[assignment]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the step, which every rank knows alike, and logs when it is time."""
        if not self.names:
            return
        loss: StepLoss = pl_module.last_step  # type: ignore[assignment]
        for name, found in zip(self.names, loss.by_source, strict=True):
            self.sums[name] = SourceLoss.total([found, self.sums.get(name, SourceLoss(0.0, 0))])
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        self.step, self.losses = step, by_name("loss", self.names, [self.sums[name] for name in self.names])
        self.sums = {}
        for log in trainer.loggers:
            log.log_metrics(self.losses, step - 1)  # as Lightning numbers the step's own loss

    def values(self, step: int) -> dict[str, float]:
        """Returns what was logged after this step."""
        return self.losses if step == self.step else {}

    def state_dict(self) -> dict[str, Any]:
        """Returns what was summed since it was last logged."""
        return {name: list(of_source) for name, of_source in self.sums.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes it up again; a source that the run has no more is left out."""
        self.sums = {name: SourceLoss(*of_source) for name, of_source in state_dict.items()}
