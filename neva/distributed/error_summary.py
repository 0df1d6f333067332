"""An exception of a distributed run in one line: what was raised and, for a collective, which and where."""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from pathlib import Path

import torch.distributed as dist

from neva.distributed import cuda_on_cpu

_COLLECTIVES = "torch/distributed/distributed_c10d.py"
_OF_A_BACKEND = ("gloo", "NCCL", "Timed out", "timed out")
_STDLIB = sysconfig.get_path("stdlib")
_LOST = ("onnection closed", "onnection reset", "roken pipe", "remote process exited")


def is_secondary(error: BaseException) -> bool:
    """Whether the error only says that another process is gone."""
    return any(part in str(error) for part in _LOST)


def describe(error: BaseException) -> str:
    """Returns type and first line of `error`, behind the collective that it comes from if it comes from one."""
    first_line = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    op = _collective(error) if any(part in first_line for part in _OF_A_BACKEND) else None
    return text if op is None else f"{op}: {text}"


def _collective(error: BaseException) -> str | None:
    """Returns op, group and ranks, and the line of code with its file, from the frames that the error came through."""
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = [(frame, line) for frame, line in frames if not _is_plumbing(frame.f_code.co_filename)]
    if not ours:
        return None
    frame, line = ours[-1]
    path = Path(frame.f_code.co_filename)
    place = f"`{linecache.getline(str(path), line).strip()}` at {path.parent.name}/{path.name}:{line}"
    calls = [frame for frame, _ in frames if frame.f_code.co_filename.endswith(_COLLECTIVES)]
    if not calls:
        return place
    return f"{calls[0].f_code.co_name.strip('_')} over {_group(calls[0].f_locals.get('group'))}, {place}"


def _is_plumbing(path: str) -> bool:
    """Whether a file belongs to torch, to Python itself, or to what stands between torch and its callers."""
    return (
        "/torch/" in path
        or path == cuda_on_cpu.__file__
        or (path.startswith(_STDLIB) and "site-packages" not in path)
    )


def _group(group: dist.ProcessGroup | None) -> str:
    group = group or dist.group.WORLD
    return (
        "an unknown group" if group is None else f"{group.group_desc} {dist.get_process_group_ranks(group)}"
    )
