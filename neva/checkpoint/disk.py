"""Room on the disk for a checkpoint: asked before it is written, and named when it does not suffice."""

from __future__ import annotations

import errno
import os
import re
import shutil
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica

from neva.distributed import groups
from neva.errors import CheckpointError, reason

Result = TypeVar("Result")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space on the disk, none left of the user's share, a file larger than the process may write."""

TORCH_STOPPED = re.compile(r"iostream|inline_container|PytorchStreamWriter")
"""What torch's writer says when the operating system refuses bytes; it drops the reason."""


def needed_room(state: Mapping[str, Any], folder: Path) -> int:
    """Returns the bytes that a checkpoint in `folder` will take. Called by every rank.

    Raises:
        CheckpointError: the disk has less room than the tensors of `state` take, or the folder cannot be made.
    """
    needed = sum(groups.gathered(written_bytes(state)))

    def free() -> int:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder.parent).free

    if needed > agreed(free, folder, needed)[0]:
        raise _no_room(folder, needed, "it was not begun")
    return needed


def agreed(
    action: Callable[[], Result], folder: Path, needed: int, group: dist.ProcessGroup | None = None
) -> list[Result]:
    """Returns what each rank gets from `action`, a part of writing a checkpoint. Called by every rank.

    Raises:
        CheckpointError: on all ranks, where the disk of one of them has not taken what it wrote.
        RuntimeError: on all ranks, where it failed for another reason.
    """
    try:
        mine: tuple[Any, str | None, str | None] = (action(), None, None)
    except Exception as error:
        mine = (None, _refusal(error, folder, needed), traceback.format_exc())
    found = groups.gathered(mine, group)
    for _, refusal, trace in found:
        if refusal is not None:
            raise CheckpointError(refusal)
        if trace is not None:
            raise RuntimeError(f"writing the checkpoint {folder} failed\n{trace}")
    return [result for result, _, _ in found]


def written_bytes(state: Mapping[str, Any]) -> int:
    """Returns the bytes of the tensors that this rank writes: replicas of others are written once."""
    sharded = (
        value for value in nested_values(state) if isinstance(value, ShardedTensor | ShardedTensorFactory)
    )
    own = (value.data for value in sharded if is_main_replica(value.replica_id))
    return sum(data.nbytes for data in own if data is not None)


def sync(path: Path) -> None:
    """Has the disk hold a file, or the names in a folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _refusal(error: Exception, folder: Path, needed: int) -> str | None:
    """Returns the sentence for what the file system has refused; None: the error is another one."""
    if TORCH_STOPPED.search(str(error)):
        return str(_no_room(folder, needed, f"writing stopped: {str(error).splitlines()[0]}"))
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL:
        return str(_no_room(folder, needed, f"writing stopped: {error.strerror}"))
    return f"the checkpoint {folder} cannot be written: {reason(error)}; what was saved before is whole"


def _no_room(folder: Path, needed: int, what: str) -> CheckpointError:
    nearest = next(path for path in folder.parents if path.is_dir())
    free = shutil.disk_usage(nearest).free
    return CheckpointError(
        f"the checkpoint {folder} needs {needed:,} bytes, its disk has {free:,} free ({what}): free some, or choose "
        "another exp_manager.exp_dir; what was saved before is whole"
    )
