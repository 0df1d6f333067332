"""One command on each of two hosts, which start their own local processes, train what one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neva.training.callbacks import read_metrics
from tests.distributed.hosts import two_hosts
from tests.megatron import launcher_free
from tests.training.conftest import colours  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300


def command(folder: Path, name: str, overrides: list[str]) -> list[str]:
    script = [
        sys.executable,
        str(ROOT / "scripts" / "neva_pretrain.py"),
        "--config-name",
        "quickstart_pretrain",
    ]
    run = [f"exp_manager.exp_dir={folder}", f"exp_manager.name={name}", "exp_manager.seconds_to_sleep=0"]
    run += ["trainer.max_steps=4"]
    return [*script, *overrides, *run, "model.micro_batch_size=1", "model.data.conv_template=v1"]


def test_two_hosts_train_to_the_losses_of_one(tmp_path: Path, colours: list[str]) -> None:  # noqa: F811
    environment = {**launcher_free(os.environ), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with two_hosts() as hosts:
        shared = {**environment, "MASTER_ADDR": hosts[0].address, "MASTER_PORT": "6000", "WORLD_SIZE": "4"}
        nodes = ["trainer.num_nodes=2", "trainer.devices=2", "parallel=fsdp_hybrid"]
        spread = command(tmp_path, "two", [*colours, *nodes])
        logs = [tmp_path / f"{host.name}.log" for host in hosts]
        started = [
            host.start(spread, {**shared, "NODE_RANK": str(number)}, logs[number])
            for number, host in enumerate(hosts)
        ]
        try:
            codes = [process.wait(TIMEOUT_S) for process in started]
        finally:
            for process in started:
                process.kill()
    assert codes == [0, 0], "".join(log.read_text()[-3000:] for log in logs)
    one = command(tmp_path, "one", colours)
    subprocess.run(one, env=environment, check=True, capture_output=True, timeout=TIMEOUT_S)
    expected, found = ([row["loss"] for row in read_metrics(tmp_path / name)] for name in ("one", "two"))
    assert len(found) == 4 and found[0] != found[-1]
    # float32 sums in another order, carried through four steps
    assert found == pytest.approx(expected, rel=1e-5)
    table = [row for row in map(str.split, logs[0].read_text().splitlines()) if row[2:3] == ["cpu"]]
    assert table == [
        [str(rank), f"h{1 + rank // 2}", "cpu", "0", "0", "0", str(rank), "0"] for rank in range(4)
    ]
    assert "rank  host" not in logs[1].read_text()
