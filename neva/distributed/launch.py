"""Who starts the processes of a run, and which of them this one is: read from the environment, without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from neva.errors import LaunchError

LOCAL = "local"
STARTED = "started"
TORCHRUN = "torchrun"
SLURM = "slurm"

LAUNCH_VARIABLES = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
    "LOCAL_WORLD_SIZE",
    "TORCHELASTIC_RUN_ID",
)
"""What launchers set, SLURM apart, whose variables all start with `SLURM_`."""

SHELL_STEP = str(0xFFFFFFFA)
"""SLURM's number of the step in which `salloc` has its shell, whatever the job is called."""

SHELLS = ("bash", "zsh", "sh", "csh", "tcsh", "ksh", "fish")
"""Names of the jobs that `srun --pty bash` makes, and `srun bash train.sh` too, which has no terminal."""


@dataclass(frozen=True)
class Launch:
    """The place of this process in a run.

    `launcher` is `local` when this process starts the others of its node, `started` when it was itself started
    with LOCAL_RANK in its environment, else `torchrun` or `slurm`.
    """

    launcher: str
    world_size: int
    rank: int
    local_rank: int
    node_rank: int


def identify(devices: int, num_nodes: int, environment: Mapping[str, str] = os.environ) -> Launch:
    """Returns the place of this process in a run of `devices * num_nodes` processes.

    Raises:
        LaunchError: the environment contradicts itself or the numbers.
    """
    size = devices * num_nodes
    if environment.get("MASTER_PORT"):
        _integer(environment, "MASTER_PORT", "give a free port of the first node, or unset it", 65536, low=1)
    if "TORCHELASTIC_RUN_ID" in environment:
        return _torchrun(devices, num_nodes, environment)
    if "LOCAL_RANK" in environment:
        return _started(devices, num_nodes, environment)
    if _runs_in_srun(environment) and not _is_one_command_per_node(size, num_nodes, environment):
        return _slurm(devices, num_nodes, environment)
    return _local(devices, num_nodes, environment)


def is_stated(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment says anything of a launch."""
    return any(name in environment for name in LAUNCH_VARIABLES) or _runs_in_srun(environment)


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of its node, as far as the environment tells before a recipe is read."""
    return environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", "0")) == "0"


def _torchrun(devices: int, num_nodes: int, environment: Mapping[str, str]) -> Launch:
    remedy = "torchrun sets it"
    size, local_size = (_integer(environment, name, remedy) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if size != devices * num_nodes or local_size != devices:
        raise LaunchError(
            f"torchrun started {size} processes, {local_size} on this node, but trainer.devices={devices} x "
            f"trainer.num_nodes={num_nodes} is {devices * num_nodes}: set trainer.devices to --nproc-per-node and "
            "trainer.num_nodes to --nnodes"
        )
    limits = {"RANK": size, "LOCAL_RANK": devices, "GROUP_RANK": num_nodes}
    return Launch(TORCHRUN, size, *_ranks(environment, remedy, limits))


def _started(devices: int, num_nodes: int, environment: Mapping[str, str]) -> Launch:
    remedy = "unset LOCAL_RANK to have neva start the processes of this node, or start them with torchrun"
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise LaunchError(f"LOCAL_RANK={environment['LOCAL_RANK']} is set but {name} is not: {remedy}")
    _refuse_other_size(devices, num_nodes, environment)
    local_rank = _integer(environment, "LOCAL_RANK", remedy, devices)
    node_rank = _node_rank(num_nodes, environment)
    rank = node_rank * devices + local_rank
    if "RANK" in environment and _integer(environment, "RANK", remedy) != rank:
        raise LaunchError(
            f"RANK={environment['RANK']}, but NODE_RANK={node_rank} x trainer.devices={devices} + "
            f"LOCAL_RANK={local_rank} is {rank}: make them agree, or start the processes with torchrun"
        )
    return Launch(STARTED, devices * num_nodes, rank, local_rank, node_rank)


def _slurm(devices: int, num_nodes: int, environment: Mapping[str, str]) -> Launch:
    remedy = f"ask for --nodes={num_nodes} --ntasks-per-node={devices} and start neva with srun"
    tasks, nodes = (_integer(environment, name, remedy) for name in ("SLURM_NTASKS", "SLURM_NNODES"))
    if tasks != devices * num_nodes or nodes != num_nodes:
        raise LaunchError(
            f"srun started {tasks} tasks on {nodes} nodes, but trainer.devices={devices} x "
            f"trainer.num_nodes={num_nodes} is {devices * num_nodes}: {remedy}, or change the two keys"
        )
    if tasks > 1 and environment.get("SLURM_NTASKS_PER_NODE") != str(devices):
        found = environment.get("SLURM_NTASKS_PER_NODE", "not set")
        raise LaunchError(
            f"SLURM_NTASKS_PER_NODE is {found}, but trainer.devices={devices}: {remedy} (--ntasks is not enough)"
        )
    limits = {"SLURM_PROCID": tasks, "SLURM_LOCALID": devices, "SLURM_NODEID": num_nodes}
    return Launch(SLURM, tasks, *_ranks(environment, remedy, limits))


def _local(devices: int, num_nodes: int, environment: Mapping[str, str]) -> Launch:
    _refuse_node_count(devices, num_nodes, environment)
    _refuse_other_size(devices, num_nodes, environment)
    if num_nodes > 1:
        missing = [n for n in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(n)]
        if missing:
            raise LaunchError(
                f"trainer.num_nodes={num_nodes} but {', '.join(missing)} not set: give each node's command MASTER_ADDR "
                "and MASTER_PORT of the first node and its own NODE_RANK, or start the processes with torchrun or srun"
            )
    node_rank = _node_rank(num_nodes, environment)
    return Launch(LOCAL, devices * num_nodes, node_rank * devices, 0, node_rank)


def _refuse_node_count(devices: int, num_nodes: int, environment: Mapping[str, str]) -> None:
    """PAI-DLC and others state the number of nodes as WORLD_SIZE and the node's rank as RANK."""
    size, rank = environment.get("WORLD_SIZE"), environment.get("RANK")
    if rank is None or "NODE_RANK" in environment or size != str(num_nodes) or devices * num_nodes == 1:
        return
    raise LaunchError(
        f"WORLD_SIZE={size} and RANK={rank} count nodes here (as on PAI-DLC), but neva counts processes: export "
        f"NODE_RANK=$RANK WORLD_SIZE={devices * num_nodes} and unset RANK"
    )


def _refuse_other_size(devices: int, num_nodes: int, environment: Mapping[str, str]) -> None:
    stated = environment.get("WORLD_SIZE")
    if stated is not None and stated != str(devices * num_nodes):
        raise LaunchError(
            f"the environment says WORLD_SIZE={stated}, but trainer.devices={devices} x "
            f"trainer.num_nodes={num_nodes} is {devices * num_nodes}: make them agree, or unset WORLD_SIZE"
        )


def _node_rank(num_nodes: int, environment: Mapping[str, str]) -> int:
    if num_nodes > 1 or "NODE_RANK" in environment:
        return _integer(environment, "NODE_RANK", "number the nodes of trainer.num_nodes from 0", num_nodes)
    return 0


def _runs_in_srun(environment: Mapping[str, str]) -> bool:
    """A batch script sees the job's numbers too; only what srun starts has a step, and shells have one."""
    step = environment.get("SLURM_STEP_ID")
    has_terminal = "SLURM_PTY_PORT" in environment and environment.get("SLURM_JOB_NAME") in SHELLS
    return step is not None and step != SHELL_STEP and not (step == "0" and has_terminal)


def _is_one_command_per_node(size: int, num_nodes: int, environment: Mapping[str, str]) -> bool:
    """Also a shell in a step of one task; of what `salloc` asked for, it may see the number of tasks."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS"))
    return tasks == str(num_nodes) != str(size) and (num_nodes == 1 or "NODE_RANK" in environment)


def _ranks(environment: Mapping[str, str], remedy: str, limits: Mapping[str, int]) -> list[int]:
    return [_integer(environment, name, remedy, below) for name, below in limits.items()]


def _integer(
    environment: Mapping[str, str], name: str, remedy: str, below: int | None = None, low: int = 0
) -> int:
    text = environment.get(name, "")
    # digits that int() reads and no launcher writes are refused: those of other scripts, or thousands of them
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < low or (below is not None and int(text) >= below):
        expected = f"a number from {low}" + ("" if below is None else f" to {below - 1}")
        raise LaunchError(f"{name} is {text[:40] or 'not set'}, expected {expected}: {remedy}")
    return int(text)
