"""The folder of a run: whether the run is finished, and that no other run writes into it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from neva.checkpoint.checksums import incomplete
from neva.config.paths import run_folder
from neva.errors import CheckpointError, LaunchError

logger = logging.getLogger(__name__)

LOCK = Path(".lock", "owner.json")
"""In a folder of its own: exp_manager moves the files of a run folder when a run resumes."""

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


def resume_point(cfg: DictConfig) -> Path | None:
    """Returns the newest complete checkpoint of the run folder where the last one is not; None: nothing to decide.

    Raises:
        CheckpointError: no checkpoint is complete, or two are the last.
    """
    manager, checkpoints = cfg.exp_manager, run_folder(cfg) / "checkpoints"
    last = sorted(checkpoints.glob("*-last"))
    if not manager.resume_if_exists or manager.resume_from_checkpoint is not None or not last:
        return None
    if len(last) > 1:
        raise CheckpointError(
            f"{checkpoints} holds {len(last)} last checkpoints, {last[0].name} and {last[1].name}; expected one: move "
            "the others away"
        )
    problem = incomplete(last[0])
    if problem is None:
        return None
    others = [
        (int(found[1]), path) for path in checkpoints.iterdir() if (found := _STEP.search(path.name + "-"))
    ]
    for _, path in sorted(others, reverse=True):
        if path.is_dir() and path != last[0] and incomplete(path) is None:
            logger.warning(
                "%s is damaged (%s) and passed over; the run goes on from %s", last[0], problem, path
            )
            return path
    raise CheckpointError(
        f"the checkpoint {last[0]} is damaged ({problem}) and the run has no other; move it away to start afresh"
    )


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
        yield


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['process']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "its first process has just begun"
