"""Where a run stands in its data: a place in an epoch's order, whatever the batch size was on the way there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from omegaconf import DictConfig

from neva.data.sources.mixture import content_of
from neva.data.sources.source import Records
from neva.errors import ConfigError, DataError
from neva.registry import SAMPLERS


@dataclass(frozen=True)
class Position:
    """The next sample is number `offset` of the order of epoch `epoch`."""

    epoch: int = 0
    offset: int = 0
    batch_size: int | None = None
    """Global batch size with which the epoch began, as its order may depend on it; None: it begins with the next."""

    def batch(self, num_samples: int, global_batch_size: int, drop_last: bool) -> Position:
        """Returns where the next global batch begins.

        With `drop_last`, the end of an epoch that does not fill one is left out, else the next epoch fills it.
        """
        needed = global_batch_size if drop_last else 1
        if self.offset + needed > num_samples:
            return Position(self.epoch + 1, 0, global_batch_size)
        return replace(self, batch_size=self.batch_size or global_batch_size)

    def behind(self, num_samples: int, global_batch_size: int, drop_last: bool) -> Position:
        """Returns the position behind the next global batch."""
        begin = self.batch(num_samples, global_batch_size, drop_last)
        end = begin.offset + global_batch_size
        if end > num_samples:
            return Position(begin.epoch + 1, end - num_samples, global_batch_size)
        return replace(begin, offset=end)


def position_after(steps: int, num_samples: int, global_batch_size: int) -> Position:
    """Returns the position behind that many steps of one batch size."""
    epoch, step = divmod(steps, num_samples // global_batch_size)
    return Position(epoch, step * global_batch_size, global_batch_size)


def data_identity(model_cfg: DictConfig, seed: int, records: Records) -> dict[str, Any]:
    """Returns what the order of the samples depends on: a position means something for the same values alone."""
    data_cfg = model_cfg.data
    order = SAMPLERS[data_cfg.dataloader_type]
    groups = {"mega_batch_mult": model_cfg.mega_batch_mult, "longest_first": data_cfg.longest_first}
    return {
        "records": len(records),
        "content": content_of(records),
        "datasets_exclude": sorted(data_cfg.datasets_exclude),
        # a checkpoint of a run without a share held out does not have the key
        **({"validation_split": data_cfg.validation_split} if data_cfg.validation_split else {}),
        "dataloader_type": data_cfg.dataloader_type,
        "seed": seed,
        **(groups if order.is_grouped else {}),
    }


def saved_position(position: Position, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a checkpoint holds of the position."""
    return {**asdict(position), "data": dict(identity)}


def restored_position(
    saved: Mapping[str, Any] | None,
    consumed_samples: int,
    identity: Mapping[str, Any],
    global_batch_size: int,
    on_change: str,
) -> Position:
    """Returns where a run goes on.

    Args:
        saved: what `saved_position` returned; None: a new run, or a checkpoint of before there was such a thing.
        consumed_samples: of the whole run, from which the position follows where it is not saved.
        identity: of the data as it is now.
        global_batch_size: as it is now.
        on_change: `fail`, or `new_epoch`: data that is not the same begins with an epoch of its own.

    Raises:
        DataError: the data is not what the run has seen so far.
        ConfigError: the position follows from another batch size.
    """
    if saved is None:
        if not consumed_samples:
            return Position(batch_size=global_batch_size)
        if consumed_samples % global_batch_size:
            raise ConfigError(
                f"{consumed_samples} consumed samples are not a whole number of global batches of "
                f"{global_batch_size}; resume with the model.global_batch_size that the run had"
            )
        return position_after(consumed_samples // global_batch_size, identity["records"], global_batch_size)
    position, before = Position(saved["epoch"], saved["offset"], saved.get("batch_size")), saved["data"]
    changed = [name for name in identity if before.get(name) != identity[name]]
    if not changed:
        return position
    if on_change == "new_epoch":
        return Position(position.epoch + 1)
    found = ", ".join(f"{name} was {before.get(name)} and is {identity[name]}" for name in changed)
    raise DataError(
        f"the data is not what the checkpoint has seen {position.offset} samples of ({found}): records would come "
        "twice or never; give the same data, or model.data.on_change=new_epoch to begin an epoch of the new data"
    )
