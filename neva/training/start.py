"""Where a run begins: the checkpoints that it goes on from, and what it takes of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from neva.checkpoint.index import checkpoints
from neva.checkpoint.stored_config import stored_config, stored_state, tokenizer_digest
from neva.config.derive import BEGINNING, Standing
from neva.config.paths import checkpoint_folder, run_folder
from neva.config.resumed import allowed_changes
from neva.data.held_out import training_records
from neva.data.position import data_identity
from neva.data.tokenizer import load_tokenizer
from neva.errors import ConfigError
from neva.training.run_folder import newest_whole, resume_points

logger = logging.getLogger(__name__)

_OF_THE_RUN = ("loops", "callbacks", "data_position")
"""What a checkpoint holds of the run that wrote it, beside weights and optimizer."""


@dataclass(frozen=True)
class Start:
    """What a run begins with."""

    checkpoints: tuple[Path, ...] = ()
    """The run's own, newest first: the first that is whole is read."""
    load_optim: bool = True
    load_data_state: bool = True
    takes_average: bool = False
    """Whether the moving average of the weights is read in place of them, as far as there is one."""

    def taken(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the run takes of the state that a checkpoint keeps for Lightning."""
        if self.load_data_state:
            return dict(state)
        kept = {key: value for key, value in state.items() if key not in _OF_THE_RUN}
        return kept | {"global_step": 0, "epoch": 0, "consumed_samples": 0}


def standing_of(cfg: DictConfig) -> Standing:
    """Returns where a run is that goes on with its data; the beginning for one that does not.

    Data that has changed begins the next epoch, see `restored_position`.
    """
    model, newest = cfg.model, newest_whole(cfg)
    given = cfg.exp_manager.resume_from_checkpoint if model.load_data_state else None
    folder = given if newest is None else newest.path
    state = {} if folder is None else stored_state(Path(folder))
    position = state.get("data_position")
    if position is None:
        return BEGINNING
    identity = data_identity(model, model.seed, training_records(model.data))
    if any(position["data"].get(name) != value for name, value in identity.items()):
        return Standing(state["global_step"], position["epoch"] + 1)
    return Standing(state["global_step"], position["epoch"], position["offset"])


def find_start(cfg: DictConfig, is_writer: bool) -> Start:
    """Returns where a run begins, and logs what has changed since.

    `model.load_optim` and `load_data_state` say what it takes of `model.resume_from_checkpoint` when it begins. Once it
    has a checkpoint of its own it goes on from that, whole.

    Args:
        cfg: the resolved tree; it names no checkpoint afterwards where the run goes on from its own.
        is_writer: whether this process logs.

    Raises:
        ConfigError: a key that is fixed has changed, or there must be a checkpoint and is none.
        CheckpointError: there are checkpoints, and none is complete.
    """
    model, manager = cfg.model, cfg.exp_manager
    start = Start((), model.load_optim, model.load_data_state)
    if start != Start():
        _require_another_run(cfg)
        if manager.resume_if_exists and checkpoints(checkpoint_folder(cfg)):
            if is_writer:
                logger.info("the run goes on from its own checkpoint; of %s it has taken what it wanted when it began",
                            model.resume_from_checkpoint)  # fmt: skip
            model.resume_from_checkpoint = manager.resume_from_checkpoint = None
            model.load_optim = model.load_data_state = True
            start = Start()
    found = Start(tuple(resume_points(cfg)), start.load_optim, start.load_data_state)
    if manager.resume_if_exists and not (manager.resume_ignore_no_checkpoint or found.checkpoints):
        raise ConfigError(
            f"exp_manager.resume_ignore_no_checkpoint=false and {checkpoint_folder(cfg)} has no checkpoint: look for "
            "the run's, or set the key to true to start afresh"
        )
    read = found.checkpoints[0] if found.checkpoints else manager.resume_from_checkpoint
    if read is not None:
        _compare(Path(read), cfg, is_writer)
    return found


def _require_another_run(cfg: DictConfig) -> None:
    named = Path(cfg.model.resume_from_checkpoint).resolve()
    if named.is_relative_to(run_folder(cfg).resolve()):
        raise ConfigError(
            f"model.resume_from_checkpoint={named} is of the run that is to begin: choose another exp_manager.name, or "
            "leave out model.load_optim and model.load_data_state to go on with the run"
        )


def _compare(folder: Path, cfg: DictConfig, is_writer: bool) -> None:
    stored = stored_config(folder)
    if stored is None:
        return
    before, tokenizer = stored
    changes = allowed_changes(before, cfg)
    if cfg.model.load_data_state and tokenizer != tokenizer_digest(load_tokenizer(cfg.model.tokenizer)):
        was, now = (tree.model.tokenizer.type or tree.model.tokenizer.model for tree in (before, cfg))
        raise ConfigError(
            f"the tokenizer was {was} in the checkpoint and is {now}, which gives other ids: give the old one, or "
            "begin a run of its own with model.resume_from_checkpoint and model.load_data_state=false"
        )
    for change in changes if is_writer else []:
        logger.info("changed since the checkpoint: %s", change)
