"""A rank that fails ends the run within a minute, is named, and leaves nothing that a resume would take for whole."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neva.training.callbacks import read_metrics
from tests.megatron import free_ports, launcher_free, run_command
from tests.training.conftest import colours  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
FAILING = ROOT / "tests" / "distributed" / "failing.py"
TRAINING = ROOT / "scripts" / "neva_finetune.py"
TWO = ["trainer.devices=2", "model.data.pad_to_multiple_of=4"]


def run(
    script: Path, folder: Path, overrides: Sequence[str], launcher: Sequence[str] = (), **variables: str
) -> tuple[int, str]:
    """Runs a script that trains six steps, and the processes that it starts; returns its exit code and the log."""
    command = [*launcher, str(script), "--config-name", "quickstart_finetune", *overrides]
    settings = [f"exp_manager.exp_dir={folder}", "exp_manager.name=run", "exp_manager.seconds_to_sleep=0"]
    steps = ["trainer.max_steps=6", "exp_manager.checkpoint_callback_params.every_n_train_steps=2"]
    environment = {**launcher_free(os.environ), "PYTHONPATH": str(ROOT), **variables}
    done = run_command([*command, *settings, *steps], ROOT, environment)
    return done.returncode, done.stdout + done.stderr


def fail(
    folder: Path, overrides: Sequence[str], failing: str, launcher: Sequence[str] = ()
) -> tuple[str, float]:
    """Runs two local processes of which one fails; returns the log, and how many seconds after that the last ended."""
    code, log = run(FAILING, folder, [*overrides, *TWO], launcher, FAILING=failing)
    assert code != 0
    while running(str(folder)):
        time.sleep(0.2)
    (failed_at,) = re.findall(r"^failing at (\d+\.\d+)$", log, re.MULTILINE)
    return log, time.time() - float(failed_at)


def running(token: str) -> list[str]:
    """Processes of this machine with `token` in their command."""
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [
        line for line in commands.splitlines() if token in line and "tests/distributed/failing.py" in line
    ]


def test_a_rank_that_raises_under_torchrun_stops_the_others_and_its_error_is_in_the_log(
    tmp_path: Path,
    colours: list[str],  # noqa: F811
) -> None:
    port = free_ports(1)[0]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    log, seconds = fail(tmp_path, colours, "raise,1,3", torchrun)
    assert seconds < 60
    cause = (
        r"ERROR .*rank 1 on \S+ \(process \d+\) failed: ValueError: the dog ate the batch; all processes stop"
    )
    assert len(re.findall(cause, log)) == 1
    assert "Traceback" in log and 'raise ValueError("the dog ate the batch")' in log


def test_a_stuck_collective_ends_by_the_timeout_and_is_named(tmp_path: Path, colours: list[str]) -> None:  # noqa: F811
    log, seconds = fail(
        tmp_path,
        [*colours, "trainer.distributed_timeout_s=15", "exp_manager.create_preemption_callback=false"],
        "sleep,1,1",
    )
    assert 15 <= seconds < 60
    place = r"\w+ over DATA_PARALLEL_GROUP_WITH_CP \[0, 1\], `.+` at distributed/\S+\.py:\d+"
    assert re.search(rf"rank 0 on \S+ .* failed: {place}: RuntimeError: .*Timed out waiting 15000ms", log)


def test_a_rank_killed_while_it_saves_leaves_the_checkpoint_before(
    tmp_path: Path,
    colours: list[str],  # noqa: F811
) -> None:
    log, seconds = fail(tmp_path, colours, "save,1,3")
    assert seconds < 60
    assert re.search(r"rank 1 on \S+ \(process \d+\) ended without a word: killed", log)
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir() if not path.is_symlink()] == [
        "run-step=2-consumed_samples=8.0"
    ], "the rank that lives removes the half of step 4"

    # the same run goes on where it was whole, and clears what is left over when no rank lives
    (folder / ".writing" / "run-step=4-consumed_samples=16.0").mkdir(parents=True)
    code, log = run(TRAINING, tmp_path, [*colours, *TWO[1:]])
    assert code == 0, log[-3000:]
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert "step 3/6" in log
    names = {path.name for path in folder.iterdir()}
    assert not any("unfinished" in name or name == ".writing" for name in names)


def test_ranks_with_different_configurations_do_not_start(tmp_path: Path, colours: list[str]) -> None:  # noqa: F811
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    node = [*colours, "trainer.num_nodes=2", "model.data.pad_to_multiple_of=4"]

    def start(rank: int) -> tuple[int, str]:
        lr = f"model.optim.lr={('0.001', '0.002')[rank]}"
        return run(TRAINING, tmp_path, [*node, lr], NODE_RANK=str(rank), **place)

    with ThreadPoolExecutor() as both:
        (code, log), (other_code, other_log) = both.map(start, range(2))
    assert code == other_code == 2
    (sentence,) = [line for line in log.splitlines() if line.startswith("neva: ")]
    assert re.fullmatch(
        r"neva: rank 1 on \S+ differs from rank 0 on \S+: key model\.optim\.lr is 0\.002 there and 0\.001 on rank 0; "
        "start every rank with the same command, code and files",
        sentence,
    )
    for silent in ("neva: ", "Traceback", "Error"):
        assert silent not in other_log
    assert not (tmp_path / "run" / "checkpoints").exists()
