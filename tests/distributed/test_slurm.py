"""scripts/slurm/train.sbatch on a real SLURM: two tasks train, save when the time is up, are requeued and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from neva.training.callbacks import read_metrics
from tests.distributed.slurm import cluster
from tests.megatron import free_ports
from tests.training.conftest import colours  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "slurm" / "train.sbatch"
TIMEOUT_S = 400


def test_the_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_a_job_that_is_told_to_stop_before_its_first_step_is_requeued(tmp_path: Path) -> None:
    """With stand-ins for SLURM's commands; the tasks die of the signal."""
    stand_ins = {
        "srun": 'echo $$ >"$PLACE/step"; exec sleep 60',
        "scancel": 'kill -TERM "$(cat "$PLACE/step")"',
        "scontrol": 'echo "$@" >"$PLACE/told"',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    request = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "1"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, **request, "PATH": path, "NEVA_VENV": sys.prefix, "PLACE": str(tmp_path)}
    with subprocess.Popen(["bash", str(SCRIPT)], env=environment) as job:
        while not (tmp_path / "step").exists() or not (tmp_path / "step").read_text():
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
    assert job.returncode == 75
    assert (tmp_path / "told").read_text() == "requeue 7\n"


def test_a_job_that_is_told_to_stop_saves_is_requeued_and_goes_on(
    tmp_path: Path,
    colours: list[str],  # noqa: F811
) -> None:
    steps = 60
    run = [f"exp_manager.exp_dir={tmp_path}", "exp_manager.name=run", f"trainer.max_steps={steps}"]
    overrides = [*colours, *run, "exp_manager.seconds_to_sleep=0", "model.data.pad_to_multiple_of=4"]
    with cluster(tmp_path, free_ports(2)) as slurm:
        environment = {**slurm, "NEVA_VENV": sys.prefix, "PYTHONPATH": str(ROOT)}
        request = ["sbatch", "--parsable", "--nodes=1", "--ntasks-per-node=2", f"--output={tmp_path}/log"]
        recipe = ["--config-name", "quickstart_finetune"]
        job = _run([*request, str(SCRIPT), *recipe, *overrides], environment)
        log, metrics = tmp_path / "log", tmp_path / "run"
        _wait(lambda: len(read_metrics(metrics)) >= 3, log)
        # what --signal=B:USR1@300 does five minutes before the end
        _run(["scancel", "--batch", "--signal=USR1", job], environment)
        _wait(lambda: "Restarts=1" in _run(["scontrol", "show", "job", job], environment), log)
        first = read_metrics(metrics)[-1]["step"]
        _wait(lambda: _completed(job, environment), log)
    text = log.read_text()
    assert 3 <= first < steps
    assert [row["step"] for row in read_metrics(metrics)] == list(range(1, steps + 1))
    assert text.count("2 ranks\nrank  host") == 2
    assert f"job {job} has saved what there was and goes back into the queue" in text
    assert list((metrics / "checkpoints").glob("*.nemo"))


def _run(command: list[str], environment: dict[str, str]) -> str:
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def _completed(job: str, environment: dict[str, str]) -> bool:
    """Whether the job has ended well; one that waits is told to start, since SLURM holds a requeued job back."""
    shown = _run(["scontrol", "show", "job", job], environment)
    if "JobState=PENDING" in shown:
        update = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
        subprocess.run(update, env=environment, capture_output=True)
    return "JobState=COMPLETED" in shown


def _wait(holds: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, (
            log.read_text()[-3000:] if log.exists() else os.listdir(log.parent)
        )
        time.sleep(0.5)
