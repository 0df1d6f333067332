"""The launch variables say what `launch.identify` found, whichever of them a library reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from neva.distributed.launch import LAUNCH_VARIABLES, LOCAL, SLURM, STARTED, TORCHRUN, Launch

RANK_VARIABLES = re.compile(
    rf"{'|'.join(LAUNCH_VARIABLES)}|TORCHELASTIC_\w+|SLURM_(PROCID|LOCALID|NODEID)"
    r"|(OMPI|PMI|PMIX|MPI|MV2|JSM|PALS|FLUX)_\w+"
)
"""What NeMo, Lightning, torch or Megatron may take a rank or a size from."""

KEPT = {
    LOCAL: re.compile(r"NODE_RANK|MASTER_ADDR|MASTER_PORT"),
    STARTED: re.compile(r"WORLD_SIZE|RANK|LOCAL_RANK|NODE_RANK|MASTER_ADDR|MASTER_PORT"),
    TORCHRUN: re.compile(rf"{'|'.join(LAUNCH_VARIABLES)}|TORCHELASTIC_\w+"),
    SLURM: re.compile(r"SLURM_\w+|MASTER_ADDR|MASTER_PORT"),
}
"""What belongs to each way of starting a run; the rest was left behind by another program."""


def settle(place: Launch, environment: MutableMapping[str, str] = os.environ) -> None:
    """Removes from the environment what contradicts `place`; before libraries that read it are imported."""
    for name in list(environment):
        is_stale = not KEPT[place.launcher].fullmatch(name) or not environment[name]
        if RANK_VARIABLES.fullmatch(name) and is_stale:
            del environment[name]


@contextmanager
def restored_environment() -> Iterator[None]:
    """Gives `os.environ` back as it was found.

    Lightning writes LOCAL_RANK, NODE_RANK, MASTER_ADDR and more into it; whoever inherits them, be it the next
    run in this process or a process that it starts, would take itself for one that somebody else started.
    """
    found = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - found.keys():
            del os.environ[name]
        os.environ.update(found)
