"""The folder of a run: whether the run is finished, and that no other run writes into it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig

from neva.checkpoint.checksums import incomplete, tell_passed_over
from neva.checkpoint.index import LAST, Checkpoint, checkpoints, unlink_last
from neva.checkpoint.nemo_export import AVERAGED
from neva.config.paths import checkpoint_folder
from neva.errors import CheckpointError, ConfigError, LaunchError
from neva.formats import file_lock
from neva.formats.file_lock import HeldError

logger = logging.getLogger(__name__)

LOCK = Path(".lock", "owner.json")
"""In a folder of its own: exp_manager moves the files of a run folder when a run resumes."""

PASSED_OVER = "passed_over"
"""Folder of a run for checkpoints that it does not resume from; nothing removes it."""


def newest_whole(cfg: DictConfig) -> Checkpoint | None:
    """Returns the checkpoint of its own that a run goes on from, None where there is none."""
    if not cfg.exp_manager.resume_if_exists:
        return None
    found = checkpoints(checkpoint_folder(cfg))
    return next((one for one in found if incomplete(one.path) is None), None)


def finished_step(cfg: DictConfig) -> int | None:
    """Returns the step of the newest checkpoint where nothing is left to do up to `trainer.max_steps`, else None."""
    newest = newest_whole(cfg)
    if newest is None or newest.step < cfg.trainer.max_steps:
        return None
    wants_nemo = cfg.exp_manager.checkpoint_callback_params.save_nemo_on_train_end
    is_written = any(not path.stem.endswith(AVERAGED) for path in checkpoint_folder(cfg).glob("*.nemo"))
    return None if wants_nemo and not is_written else newest.step


def resume_points(cfg: DictConfig) -> list[Path]:
    """Returns the complete checkpoints of the run, newest first, else `resume_from_checkpoint`, else nothing.

    Of several that are called `-last`, as earlier versions leave them when they are killed, all but the newest complete
    one are moved to `PASSED_OVER`: NeMo refuses to choose. Called by every process of the run, at about the same time.

    Raises:
        CheckpointError: there are checkpoints, and none is complete.
    """
    manager = cfg.exp_manager
    given = [] if manager.resume_from_checkpoint is None else [Path(manager.resume_from_checkpoint)]
    if not manager.resume_if_exists:
        return given
    found = [one.path for one in checkpoints(checkpoint_folder(cfg))]
    problems = {path: incomplete(path) for path in found}
    whole = [path for path in found if problems[path] is None]
    if found and not whole:
        raise CheckpointError(
            f"the checkpoint {found[0]} is damaged ({problems[found[0]]}) and the run has no other; move it away to "
            "start afresh"
        )
    if whole and whole[0] != found[0]:
        tell_passed_over(found[0], problems[found[0]], whole[0])
    lasts = [path for path in found if path.name.endswith(LAST)]
    kept = next((path for path in whole if path in lasts), None)
    for path in lasts if len(lasts) > 1 else []:
        if path != kept:
            set_aside(path, "is not the newest whole one of several last checkpoints")
    if lasts:
        unlink_last(checkpoint_folder(cfg))
    return [path for path in whole if path == kept or path not in lasts] or given


def refuse_overwriting(cfg: DictConfig) -> None:
    """Raises ConfigError where a run that goes on from nothing would write among the checkpoints of an earlier one.

    NeMo gives such a run a folder of its own, unless the configuration names one.
    """
    manager = cfg.exp_manager
    named = (
        manager.explicit_log_dir,
        manager.get("version"),
        manager.checkpoint_callback_params.get("dirpath"),
    )
    if manager.resume_if_exists or not any(named) or not manager.create_checkpoint_callback:
        return
    if found := checkpoints(checkpoint_folder(cfg)):
        raise ConfigError(
            f"{found[0].path.parent} has checkpoints of an earlier run and exp_manager.resume_if_exists=false: choose "
            "another folder, set resume_if_exists=true to go on from them, or move them away"
        )


def set_aside_later(folder: Path, step: int) -> None:
    """Moves away the checkpoints of `folder` that are later than the run is: damaged ones, since it is not at theirs.

    They would be taken for newer than those which the run writes from now on. Called by one process.
    """
    for one in checkpoints(folder):
        if one.step > step:
            set_aside(one.path, f"is of a later step than {step}, where the run goes on")


def set_aside(path: Path, why: str) -> None:
    """Moves a checkpoint to `PASSED_OVER`, unless another process of the run just has."""
    folder = path.parent.with_name(PASSED_OVER)
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    while target.exists():
        target = target.with_name(f"{target.name}-again")
    with suppress(FileNotFoundError):
        path.rename(target)
        logger.warning("%s %s: moved to %s", path, why, target)


@contextmanager
def locked(folder: Path, is_writer: bool) -> Iterator[None]:
    """Keeps other runs out of a run folder until the block or the process ends.

    Args:
        folder: the run folder.
        is_writer: whether this is the one process of the run that takes the lock.

    Raises:
        LaunchError: another run has it; the message names its host and process.
    """
    if not is_writer:
        yield
        return
    try:
        with file_lock.locked(folder / LOCK):
            yield
    except HeldError as error:
        raise LaunchError(
            f"{folder} belongs to a run that goes on ({error}): wait for its end, or choose another exp_manager.name"
        ) from error
