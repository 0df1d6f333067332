"""The folder of a run: whether the run is finished, and that no other run writes into it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from omegaconf import DictConfig

from neva.checkpoint.checksums import incomplete, tell_passed_over
from neva.config.paths import run_folder
from neva.errors import CheckpointError, LaunchError

logger = logging.getLogger(__name__)

LOCK = Path(".lock", "owner.json")
"""In a folder of its own: exp_manager moves the files of a run folder when a run resumes."""

PASSED_OVER = "passed_over"
"""Folder of a run for checkpoints that it does not resume from; nothing removes it."""

_STEP = re.compile(r"-step=(\d+)-")


def finished_step(cfg: DictConfig) -> int | None:
    """Returns the step of the last checkpoint when nothing is left to do up to `trainer.max_steps`; None: there is."""
    manager = cfg.exp_manager
    checkpoints = run_folder(cfg) / "checkpoints"
    steps = [int(found[1]) for path in checkpoints.glob("*-last") if (found := _STEP.search(path.name))]
    if not manager.resume_if_exists or not steps or max(steps) < cfg.trainer.max_steps:
        return None
    wants_nemo = manager.checkpoint_callback_params.save_nemo_on_train_end
    return None if wants_nemo and not any(checkpoints.glob("*.nemo")) else max(steps)


def resume_points(cfg: DictConfig) -> list[Path]:
    """Returns the complete checkpoints of the run folder, newest first; none where there is nothing to resume.

    Of several that are called `-last`, as a run leaves that is killed between writing one and removing the other,
    all but the newest complete one are moved to `PASSED_OVER`: NeMo refuses to choose. Called by every process of
    the run, at about the same time.

    Raises:
        CheckpointError: there are checkpoints, and none is complete.
    """
    manager, folder = cfg.exp_manager, run_folder(cfg)
    if not manager.resume_if_exists or manager.resume_from_checkpoint is not None:
        return []
    found = _checkpoints(folder / "checkpoints")
    problems = {path: incomplete(path) for path in found}
    whole = [path for path in found if problems[path] is None]
    if found and not whole:
        raise CheckpointError(
            f"the checkpoint {found[0]} is damaged ({problems[found[0]]}) and the run has no other; move it away to "
            "start afresh"
        )
    if whole and whole[0] != found[0]:
        tell_passed_over(found[0], problems[found[0]], whole[0])
    lasts = [path for path in found if path.match("*-last")]
    kept = next((path for path in whole if path in lasts), None)
    for path in lasts if len(lasts) > 1 else []:
        if path != kept:
            _set_aside(path, folder / PASSED_OVER)
    return [path for path in whole if path == kept or path not in lasts]


def _checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder by the step that their names give, newest first."""
    steps = {path: _STEP.search(path.name + "-") for path in folder.glob("*") if path.is_dir()}
    found = [
        (int(step[1]) if step else -1, path) for path, step in steps.items() if step or path.match("*-last")
    ]
    return [path for _, path in sorted(found, reverse=True)]


def _set_aside(path: Path, folder: Path) -> None:
    """Moves a checkpoint into `folder`, unless another process of the run just has."""
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    while target.exists():
        target = target.with_name(f"{target.name}-again")
    with suppress(FileNotFoundError):
        path.rename(target)
        logger.warning(
            "%s is not the newest whole one of several last checkpoints: moved to %s", path, target
        )


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
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        file.flush()
        _held.append(file)
        try:
            yield
        finally:
            _held.remove(file)


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['process']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "its first process has just begun"
