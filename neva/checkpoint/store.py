"""Folders of training checkpoints: Megatron's distributed checkpoints, readable in any layout."""

from __future__ import annotations

import contextlib
import queue
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.validation import StrictHandling

from neva.checkpoint.checksums import first_whole, write_checksums
from neva.checkpoint.disk import room_for

LIGHTNING_STATE = "lightning"
"""Where a checkpoint keeps what is no sharded tensor."""

UNFINISHED = ".writing"
"""Folder beside the checkpoints for those that are not complete; NeMo's search for checkpoints passes over its name."""


def save(folder: Path, state: dict[str, Any], common: Mapping[str, Any], is_kept: bool = True) -> None:
    """Writes a checkpoint aside and moves it to `folder` when it is complete. Called by every rank.

    What an interrupted save left behind is removed by the next one. One that is not kept needs no checksums.

    Raises:
        CheckpointError: the disk is full; what `folder` held before is untouched.
    """
    temporary = folder.with_name(UNFINISHED) / folder.name
    if dist.get_rank() == 0:
        shutil.rmtree(temporary.parent, ignore_errors=True)
    # Written and read by this process; Megatron's own is a manager process, which outlives a killed run for a minute.
    filesystem_async._results_queue = queue.Queue()
    with room_for(state, folder), removed_on_failure(temporary.parent):
        if dist.get_rank() == 0:
            temporary.mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save({**state, LIGHTNING_STATE: dict(common)}, str(temporary))
        dist.barrier()
        if is_kept:
            write_checksums(temporary)
    if dist.get_rank() == 0:
        remove(folder)
        temporary.rename(folder)
        shutil.rmtree(temporary.parent, ignore_errors=True)
    dist.barrier()


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Removes what an error has left half written: on a full disk nobody could save anything beside it."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove(folder: Path) -> None:
    """Deletes a checkpoint, moved aside first: half of one must not be found. Called by one rank."""
    if folder.exists():
        aside = folder.with_name(UNFINISHED)
        aside.mkdir(exist_ok=True)
        folder.rename(aside / f"{folder.name}.outdated")
        shutil.rmtree(aside / f"{folder.name}.outdated", ignore_errors=True)
        with contextlib.suppress(OSError):  # a checkpoint is being written there
            aside.rmdir()


def load(folder: Path, state: dict[str, Any], earlier: Sequence[Path] = ()) -> dict[str, Any]:
    """Reads a checkpoint into the layout of `state`; every tensor asked for must be there and fit.

    Args:
        folder: the checkpoint.
        state: sharded tensors that say what this rank holds.
        earlier: those that may be read instead where a file of `folder` is not what was written, newest first.

    Returns:
        The tree with tensors, and what was saved as common under `LIGHTNING_STATE`.

    Raises:
        CheckpointError: none of them is what was written.
    """
    whole = first_whole(folder, earlier)
    return dist_checkpointing.load(state, str(whole), strict=StrictHandling.RAISE_UNEXPECTED)
