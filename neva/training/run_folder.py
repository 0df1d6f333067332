"""The folder of a run: whether the run is finished, and that no other run writes into it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from omegaconf import DictConfig

from neva.checkpoint.checksums import incomplete, tell_passed_over
from neva.checkpoint.index import LAST, checkpoints, unlink_last
from neva.checkpoint.nemo_export import AVERAGED
from neva.config.paths import checkpoint_folder
from neva.errors import CheckpointError, ConfigError, LaunchError

logger = logging.getLogger(__name__)

LOCK = Path(".lock", "owner.json")
"""In a folder of its own: exp_manager moves the files of a run folder when a run resumes."""

PASSED_OVER = "passed_over"
"""Folder of a run for checkpoints that it does not resume from; nothing removes it."""


def finished_step(cfg: DictConfig) -> int | None:
    """Returns the step of the newest checkpoint where nothing is left to do up to `trainer.max_steps`, else None."""
    manager, folder = cfg.exp_manager, checkpoint_folder(cfg)
    newest = next((one for one in checkpoints(folder) if incomplete(one.path) is None), None)
    if not manager.resume_if_exists or newest is None or newest.step < cfg.trainer.max_steps:
        return None
    wants_nemo = manager.checkpoint_callback_params.save_nemo_on_train_end
    is_written = any(not path.stem.endswith(AVERAGED) for path in folder.glob("*.nemo"))
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


_held: list[TextIO] = []
"""Locks of this process."""


def _let_go() -> None:
    """Closes what a data worker has inherited: it may outlive a run that is killed, and would keep the next one out."""
    for file in _held:
        file.close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(folder: Path, is_writer: bool) -> Iterator[None]:
    """Keeps other runs out of a run folder until the block or the process ends.

    The lock is the kernel's (flock): that of a process that has died is nobody's. Over NFS the server keeps it, on
    Lustre only where it is mounted with `flock`; where the file system has no locks, that is said and nothing is kept.

    Args:
        folder: the run folder.
        is_writer: whether this is the one process of the run that takes the lock.

    Raises:
        LaunchError: another run has it; the message names its host and process.
    """
    if not is_writer:
        yield
        return
    path = folder / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LaunchError(
                f"{folder} belongs to a run that goes on ({_owner(file.read())}): wait for its end, or choose another "
                "exp_manager.name"
            ) from error
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): see to it that no second run writes there", folder, error.strerror
            )
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": since}))
        file.flush()
        _held.append(file)
        try:
            yield
        finally:
            _held.remove(file)


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "its first process has just begun"
