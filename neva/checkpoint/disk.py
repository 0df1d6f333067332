"""Room on the disk for a checkpoint: asked before it is written, and named when it does not suffice."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica
from torch.distributed.checkpoint.api import CheckpointException

from neva.distributed import groups
from neva.errors import CheckpointError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space on the disk, none left of the user's share, a file larger than the process may write."""

TORCH_STOPPED = re.compile(r"iostream|inline_container|PytorchStreamWriter")
"""What torch's writer says when the operating system refuses bytes; it drops the reason."""


@contextmanager
def room_for(state: Mapping[str, Any], folder: Path) -> Iterator[None]:
    """Says in one sentence that a checkpoint in `folder` needs more room than there is. Called by every rank.

    Raises:
        CheckpointError: before the block, where the disk has less room than the tensors of `state` take; behind it,
            where writing failed all the same (a quota, another program that fills the disk).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(groups.gathered(written_bytes(state)))
    if needed > groups.gathered(shutil.disk_usage(folder.parent).free)[0]:
        raise _no_room(folder, needed, "it was not begun")
    try:
        yield
    except CheckpointException as error:  # of the workers that write, gathered by torch from all ranks
        reasons = (str(failure[0]).splitlines()[0] for failure in error.failures.values())
        raise _no_room(folder, needed, f"writing stopped: {next(reasons, 'unknown')}") from error
    except RuntimeError as error:
        if not TORCH_STOPPED.search(str(error)):
            raise
        raise _no_room(folder, needed, f"writing stopped: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _no_room(folder, needed, f"writing stopped: {error.strerror}") from error


def written_bytes(state: Mapping[str, Any]) -> int:
    """Returns the bytes of the tensors that this rank writes: replicas of others are written once."""
    sharded = (
        value for value in nested_values(state) if isinstance(value, ShardedTensor | ShardedTensorFactory)
    )
    own = (value.data for value in sharded if is_main_replica(value.replica_id))
    return sum(data.nbytes for data in own if data is not None)


def _no_room(folder: Path, needed: int, what: str) -> CheckpointError:
    free = shutil.disk_usage(folder.parent).free
    return CheckpointError(
        f"the checkpoint {folder} needs {needed:,} bytes, its disk has {free:,} free ({what}): free some, or choose "
        "another exp_manager.exp_dir; what was saved before is whole"
    )
