"""Disk space that the checkpoints of a run will take, and the checkpoint that it will continue from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from omegaconf import DictConfig

from neva.checkpoint.index import checkpoints
from neva.config.paths import checkpoint_folder
from neva.config.resumed import allowed_changes
from neva.errors import ConfigError
from neva.findings import Findings
from neva.precision import FLOAT32, precision_named


def find_disk(
    cfg: DictConfig, saved_parameters: int, trained_parameters: int, steps: int | None, found: Findings
) -> None:
    """Adds the disk space needed and free; a problem when it does not suffice."""
    precision, kept = precision_named(cfg.trainer.precision), cfg.exp_manager.checkpoint_callback_params
    weights = saved_parameters * precision.num_bytes
    averages = bool(cfg.exp_manager.ema.enable)
    of_each = precision.adam_bytes + averages * FLOAT32.num_bytes
    one, copies = weights + trained_parameters * of_each, _copies(cfg, steps)
    nemo = weights if kept.save_nemo_on_train_end and cfg.exp_manager.create_checkpoint_callback else 0
    nemo *= 1 + averages
    needed = copies * one + nemo
    folder = checkpoint_folder(cfg).resolve()
    nearest = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(nearest).free + _size(folder)
    found.add(
        "disk",
        f"{copies} checkpoints x {_gigabytes(one)} + .nemo {_gigabytes(nemo)} = {_gigabytes(needed)} "
        f"of {_gigabytes(free)} free",
    )
    if needed > free:
        found.problems.append(
            f"checkpoints will take {_gigabytes(needed)}, {nearest} has {_gigabytes(free)}: lower "
            "exp_manager.checkpoint_callback_params.save_top_k or choose another exp_manager.exp_dir"
        )


def note_resume(cfg: DictConfig, found: Findings) -> None:
    """Notes the checkpoint that the run continues from, and that a run leaves none."""
    there = checkpoints(checkpoint_folder(cfg))
    if there and cfg.exp_manager.resume_if_exists:
        found.notes.append(f"the run will continue from {there[0].path}")
        _note_changes(there[0].path, cfg, found)
    if not cfg.exp_manager.create_checkpoint_callback:
        found.notes.append(
            "exp_manager.create_checkpoint_callback=false: the run leaves neither checkpoints nor a .nemo"
        )


def _note_changes(folder: Path, cfg: DictConfig, found: Findings) -> None:
    """Notes what has changed since a checkpoint; problems are fixed keys."""
    # with Megatron, which a dry run has imported quietly
    from neva.checkpoint.stored_config import stored_config

    stored = stored_config(folder)
    try:
        changed = [] if stored is None else allowed_changes(stored[0], cfg)
    except ConfigError as error:
        found.problems += str(error).splitlines()
    else:
        found.notes += [f"changed since that checkpoint: {change}" for change in changed]


def _copies(cfg: DictConfig, steps: int | None) -> int:
    """Checkpoints that will lie on the disk together: those that are kept, and one that is about to replace another."""
    if not cfg.exp_manager.create_checkpoint_callback:
        return 0
    kept = cfg.exp_manager.checkpoint_callback_params
    saves = None
    if steps is not None and kept.train_time_interval is None:
        saves = max(1, -(-steps // kept.every_n_train_steps))
    room = kept.save_top_k + kept.save_last if kept.save_top_k >= 0 else None
    most = min((number for number in (room, saves) if number is not None), default=1 + kept.save_last)
    return most + (saves is None or saves > most)


def _size(folder: Path) -> int:
    """Bytes below a folder, which new checkpoints of the same run replace."""
    return sum(
        os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(folder) for name in names
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
