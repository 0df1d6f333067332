"""The environment of a process says who started it, or is refused with found, expected and remedy."""

from __future__ import annotations

import os
import re

import pytest

from neva.distributed.launch import Launch, identify, is_stated, restored_environment
from neva.errors import ConfigError

NODE = {"MASTER_ADDR": "h1", "MASTER_PORT": "6000"}
CHILD = {**NODE, "LOCAL_RANK": "3", "NODE_RANK": "1", "WORLD_SIZE": "16"}
# as `torchrun --nnodes=2 --nproc-per-node=8` and `srun --nodes=2 --ntasks-per-node=8` set them
ELASTIC = {
    **NODE, "TORCHELASTIC_RUN_ID": "none", "RANK": "11", "LOCAL_RANK": "3", "GROUP_RANK": "1", "WORLD_SIZE": "16",
    "LOCAL_WORLD_SIZE": "8",
}  # fmt: skip
STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_NODEID": "1", "SLURM_JOB_NAME": "stage1",
}  # fmt: skip
BATCH_SCRIPT = {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"}


@pytest.mark.parametrize(
    ("devices", "num_nodes", "environment", "expected"),
    [
        (1, 1, {}, Launch("local", 1, 0, 0, 0)),
        (4, 1, {}, Launch("local", 4, 0, 0, 0)),
        (4, 1, BATCH_SCRIPT, Launch("local", 4, 0, 0, 0)),
        (8, 2, {**NODE, "NODE_RANK": "1"}, Launch("local", 16, 8, 0, 1)),
        (8, 2, {**NODE, "NODE_RANK": "1", "WORLD_SIZE": "16"}, Launch("local", 16, 8, 0, 1)),
        (8, 2, CHILD, Launch("started", 16, 11, 3, 1)),
        (8, 2, {**CHILD, "RANK": "11"}, Launch("started", 16, 11, 3, 1)),
        (8, 2, ELASTIC, Launch("torchrun", 16, 11, 3, 1)),
        (8, 2, {**STEP, **ELASTIC}, Launch("torchrun", 16, 11, 3, 1)),
        (8, 2, STEP, Launch("slurm", 16, 11, 3, 1)),
        (8, 2, {**STEP, **NODE, "NODE_RANK": "1", "SLURM_NTASKS": "2"}, Launch("local", 16, 8, 0, 1)),
        (8, 2, {**STEP, "SLURM_JOB_NAME": "bash", **NODE, "NODE_RANK": "0"}, Launch("local", 16, 0, 0, 0)),
    ],
)  # fmt: skip
def test_the_launcher_and_the_rank_follow_from_the_environment(
    devices: int, num_nodes: int, environment: dict[str, str], expected: Launch
) -> None:
    assert identify(devices, num_nodes, environment) == expected
    assert is_stated(environment) == (environment not in ({}, BATCH_SCRIPT))


@pytest.mark.parametrize(
    ("devices", "num_nodes", "environment", "message"),
    [
        (8, 1, {"LOCAL_RANK": "0"}, "LOCAL_RANK=0 is set but WORLD_SIZE is not: unset LOCAL_RANK"),
        (8, 2, {**CHILD, "MASTER_PORT": ""}, "LOCAL_RANK=3 is set but MASTER_PORT is not"),
        (8, 2, {**CHILD, "LOCAL_RANK": "8"}, "LOCAL_RANK is 8, expected a number from 0 to 7"),
        (8, 2, {**CHILD, "NODE_RANK": "2"}, "NODE_RANK is 2, expected a number from 0 to 1"),
        (8, 2, {**CHILD, "RANK": "3"}, "RANK=3, but NODE_RANK=1 x trainer.devices=8 + LOCAL_RANK=3 is 11"),
        (8, 2, {**NODE, "NODE_RANK": "0", "WORLD_SIZE": "8"}, "WORLD_SIZE=8, but trainer.devices=8 x"),
        (8, 1, {"WORLD_SIZE": "8x"}, "WORLD_SIZE=8x, but trainer.devices=8"),
        (8, 2, {"MASTER_ADDR": "h1"}, "trainer.num_nodes=2 but NODE_RANK, MASTER_PORT not set: give each node"),
        (8, 2, {**NODE, "MASTER_PORT": "six", "NODE_RANK": "0"}, "MASTER_PORT is six, expected a number from 1"),
        (8, 2, {**NODE, "WORLD_SIZE": "2", "RANK": "1"}, "export NODE_RANK=$RANK WORLD_SIZE=16 and unset RANK"),
        (8, 1, {**NODE, "WORLD_SIZE": "1", "RANK": "0"}, "count nodes here (as on PAI-DLC)"),
        (4, 2, ELASTIC, "torchrun started 16 processes, 8 on this node, but trainer.devices=4"),
        (8, 2, {**ELASTIC, "RANK": ""}, "RANK is not set, expected a number from 0: torchrun sets it"),
        (4, 2, STEP, "srun started 16 tasks on 2 nodes, but trainer.devices=4 x trainer.num_nodes=2 is 8"),
        (8, 2, {**STEP, "SLURM_NTASKS_PER_NODE": "16"}, "SLURM_NTASKS_PER_NODE is 16, but trainer.devices=8"),
        (8, 2, BATCH_SCRIPT, "start the processes with torchrun or srun"),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused(
    devices: int, num_nodes: int, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        identify(devices, num_nodes, environment)
    assert len(str(raised.value).splitlines()) == 1


def test_what_is_written_into_the_environment_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "h1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = dict(os.environ)
    with pytest.raises(KeyError), restored_environment():
        os.environ.update(MASTER_ADDR="h2", LOCAL_RANK="0")
        del os.environ["WORLD_SIZE"]
        raise KeyError
    assert dict(os.environ) == before
