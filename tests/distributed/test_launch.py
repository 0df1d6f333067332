"""The environment of a process says who started it, or is refused with found, expected and remedy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neva.distributed.launch import LAUNCH_VARIABLES, SHELL_STEP, Launch, identify, is_stated
from neva.distributed.launch_environment import restored_environment, settle
from neva.errors import ConfigError, LaunchError

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
TERMINAL = {"SLURM_JOB_NAME": "bash", "SLURM_PTY_PORT": "4711"}
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
        (8, 2, {**STEP, **TERMINAL, **NODE, "NODE_RANK": "0"}, Launch("local", 16, 0, 0, 0)),
        (4, 1, {**STEP, **TERMINAL}, Launch("local", 4, 0, 0, 0)),
        (8, 2, {**STEP, **TERMINAL, "SLURM_STEP_ID": "1"}, Launch("slurm", 16, 11, 3, 1)),
        (8, 2, {**STEP, "SLURM_JOB_NAME": "bash"}, Launch("slurm", 16, 11, 3, 1)),
        (8, 2, {**STEP, "SLURM_JOB_NAME": "interactive"}, Launch("slurm", 16, 11, 3, 1)),
        (4, 1, {**STEP, "SLURM_STEP_ID": "4294967290"}, Launch("local", 4, 0, 0, 0)),
        (4, 1, {**STEP, "SLURM_STEP_NUM_TASKS": "1"}, Launch("local", 4, 0, 0, 0)),
        (4, 1, {**STEP, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, Launch("local", 4, 0, 0, 0)),
    ],
)  # fmt: skip
def test_the_launcher_and_the_rank_follow_from_the_environment(
    devices: int, num_nodes: int, environment: dict[str, str], expected: Launch
) -> None:
    assert identify(devices, num_nodes, environment) == expected
    is_shell = environment in ({**STEP, **TERMINAL}, {**STEP, "SLURM_STEP_ID": SHELL_STEP})
    assert is_stated(environment) == (environment not in ({}, BATCH_SCRIPT) and not is_shell)


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
        (8, 2, {**ELASTIC, "RANK": ""}, "RANK is not set, expected a number from 0 to 15: torchrun sets it"),
        (8, 2, {**ELASTIC, "RANK": "16"}, "RANK is 16, expected a number from 0 to 15: torchrun sets it"),
        (8, 2, {**ELASTIC, "LOCAL_RANK": "8"}, "LOCAL_RANK is 8, expected a number from 0 to 7: torchrun"),
        (8, 2, {**STEP, "SLURM_NODEID": "2"}, "SLURM_NODEID is 2, expected a number from 0 to 1: ask for"),
        (8, 2, {**ELASTIC, "RANK": "1" * 5000}, f"RANK is {'1' * 40}, expected a number from 0 to 15"),
        (8, 2, {**ELASTIC, "RANK": "٣"}, "RANK is ٣, expected a number from 0 to 15"),
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


LEFT_BEHIND = {
    "GROUP_RANK": "1",
    "RANK": "1",
    "WORLD_SIZE": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMI_RANK": "1",
    "PMIX_RANK": "1",
    "MV2_COMM_WORLD_RANK": "1",
    "JSM_NAMESPACE_RANK": "1",
    "LOCAL_WORLD_SIZE": "3",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "MASTER_PORT": "",
}


def test_what_another_program_left_behind_is_removed() -> None:
    environment = {**LEFT_BEHIND, "HOME": "/root", "SLURM_JOB_ID": "7", "MPICH_GPU": "1"}
    settle(identify(1, 1, environment), environment)
    assert environment == {"HOME": "/root", "SLURM_JOB_ID": "7", "MPICH_GPU": "1"}


@pytest.mark.parametrize(
    ("devices", "num_nodes", "own"),
    [
        (2, 2, {"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500", "WORLD_SIZE": "4"}),
        (2, 1, {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}),
        (
            2,
            1,
            {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0", "WORLD_SIZE": "2"}
            | {
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "a",
                "MASTER_PORT": "29500",
                "TORCHELASTIC_RESTART_COUNT": "0",
            },
        ),
        (
            2,
            1,
            {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2"}
            | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"},
        ),
    ],
)
def test_what_a_launch_needs_stays(devices: int, num_nodes: int, own: dict[str, str]) -> None:
    stale = {"OMPI_COMM_WORLD_RANK": "3", "PMI_RANK": "3", "FLUX_TASK_RANK": "3"}
    environment = {**own, **stale}
    place = identify(devices, num_nodes, environment)
    settle(place, environment)
    assert set(environment) >= set(own) - {"WORLD_SIZE"} and not set(environment) & set(stale)
    assert identify(devices, num_nodes, environment) == place


@pytest.mark.parametrize("port", ["abc", "-1", "0", "65536", "1e3", "²"])
def test_a_port_that_is_none_is_refused_however_the_run_is_started(port: str) -> None:
    with pytest.raises(
        LaunchError, match=rf"MASTER_PORT is {port}, expected a number from 1 to 65535: give a free"
    ):
        identify(1, 1, {"MASTER_PORT": port})


NUMBERS = st.sampled_from(["0", "1", "2", "4", "", "x", "-1", "99999999", "1.5", "²", "٣", " 1", "9" * 5000])


@settings(max_examples=200)
@given(
    environment=st.dictionaries(
        st.sampled_from(
            [*LAUNCH_VARIABLES, *LEFT_BEHIND, "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_NODEID"]
            + ["SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME", "SLURM_STEP_NUM_TASKS", "SLURM_PTY_PORT"]
        ),
        NUMBERS | st.text(max_size=3),
        max_size=10,
    ),
    devices=st.integers(1, 4),
    num_nodes=st.integers(1, 3),
)
def test_any_environment_is_a_place_in_the_run_or_one_sentence(
    environment: dict[str, str], devices: int, num_nodes: int
) -> None:
    try:
        place = identify(devices, num_nodes, environment)
    except LaunchError as error:
        assert len(str(error).splitlines()) <= 2
        return
    assert place.world_size == devices * num_nodes
    assert 0 <= place.rank < place.world_size
    assert 0 <= place.local_rank < devices and 0 <= place.node_rank < num_nodes
    settle(place, environment)
    again = identify(devices, num_nodes, environment)
    assert again == place


SEVERAL = """\
from neva.distributed.launch import Launch
from neva.distributed.local_processes import require_program
require_program(Launch("local", 2, 0, 0, 0), devices=2)
"""


def test_a_program_that_is_in_no_file_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SEVERAL)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for words, is_refused in (
        (["-c", SEVERAL], True),
        (["-"], True),
        (["program.py"], False),
        (["-m", "program"], False),
    ):
        done = subprocess.run(
            [sys.executable, *words],
            input=SEVERAL,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ("LaunchError: trainer.devices=2 starts the program once" in done.stderr) == is_refused, words
        assert (done.returncode != 0) == is_refused
