"""The manifests for job engines: what each starts on a node is a `neva` command that its environment fits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from neva.commands.train import parse
from neva.config.load import load
from neva.config.paths import run_folder
from neva.distributed.launch import LOCAL, identify

FOLDER = Path(__file__).resolve().parents[2] / "scripts/launchers"
NODES = {"MASTER_ADDR": "node0", "MASTER_PORT": "23456", "WORLD_SIZE": "2", "RANK": "1"}
"""As Vertex AI and Kubeflow's operator count them."""


def manifest(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def started(shell: str, environment: dict[str, str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """Runs a shell command whose `neva` and `torchrun` only tell their words and their environment."""
    for name in ("neva", "torchrun"):
        stand_in = folder / name
        stand_in.write_text(
            f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv, dict(os.environ)]))\n"
        )
        stand_in.chmod(0o755)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    told = subprocess.run(
        ["sh", "-c", shell],
        env={"PATH": f"{folder}:/usr/bin:/bin", **environment},
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    (program, *words), found = json.loads(told.stdout)
    return [Path(program).name, *words], found


def container(pod: Any) -> Any:
    (only,) = pod["spec"]["containers"]
    assert only["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert only["command"] == ["sh", "-c"]
    return only


def test_kubeflow_starts_torchrun_on_each_node(tmp_path: Path) -> None:
    job = manifest("pytorchjob.yaml")
    assert (job["apiVersion"], job["kind"], job["spec"]["nprocPerNode"]) == (
        "kubeflow.org/v1",
        "PyTorchJob",
        "8",
    )
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert {name: replica["replicas"] for name, replica in replicas.items()} == {"Master": 1, "Worker": 1}
    (shell,) = container(replicas["Worker"]["template"])["args"]
    (program, script, *words), _ = started(
        shell, {**NODES, "PET_NNODES": "2", "PET_NPROC_PER_NODE": "8"}, tmp_path
    )
    assert (program, script) == ("torchrun", "scripts/neva_finetune.py")
    told = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "9"}
    place = identify(*counts(words), {**told, "LOCAL_RANK": "1", "GROUP_RANK": "1"})
    assert (place.world_size, place.rank) == (16, 9)


ENGINES = {
    "jobset": {"JOB_COMPLETION_INDEX": "1"},
    "skypilot": {
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    },
    "vertex": NODES,
}
"""What each sets on the second of two nodes."""


@pytest.mark.parametrize("engine", ENGINES)
def test_one_command_a_node_knows_its_place(engine: str, tmp_path: Path) -> None:
    told = dict(ENGINES[engine])
    job = manifest(f"{engine}.yaml")
    if engine == "jobset":
        assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        (replicated,) = job["spec"]["replicatedJobs"]
        batch = replicated["template"]["spec"]
        assert (batch["completionMode"], batch["completions"], batch["parallelism"]) == ("Indexed", 2, 2)
        only = container(batch["template"])
        told |= {one["name"]: one["value"] for one in only["env"]}
        first = f"{job['metadata']['name']}-{replicated['name']}-0-0.{job['spec']['network']['subdomain']}"
        assert told["MASTER_ADDR"] == first
        (shell,) = only["args"]
    elif engine == "skypilot":
        assert (job["num_nodes"], job["resources"]["accelerators"]) == (2, "H100:8")
        shell = job["run"]
    else:
        pools = job["workerPoolSpecs"]
        assert [pool["replicaCount"] for pool in pools] == [1, 1]
        assert pools[0]["machineSpec"]["acceleratorCount"] == 8
        assert job["baseOutputDirectory"]["outputUriPrefix"].startswith("gs://")
        assert pools[1]["containerSpec"]["command"] == ["sh", "-c"]
        (shell,) = pools[1]["containerSpec"]["args"]
    (program, verb, *words), found = started(shell, told, tmp_path)
    assert (program, verb) == ("neva", "train")
    place = identify(*counts(words), found)
    assert (place.launcher, place.world_size, place.rank, place.node_rank) == (LOCAL, 16, 8, 1)


def counts(words: list[str]) -> tuple[int, int]:
    """Processes of a node and nodes, as the recipe has them with these words behind `neva train`."""
    options = parse(words)
    trainer = load(options.config_name, options.overrides).trainer
    return trainer.devices, trainer.num_nodes


def test_runs_go_where_vertex_says_unless_a_key_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_MODEL_DIR", "gs://bucket/run/model/")
    assert str(run_folder(load("quickstart_pretrain", []))) == "/gcs/bucket/run/model/quickstart_pretrain"
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", "gs://bucket/run/checkpoints/")
    assert (
        str(run_folder(load("quickstart_pretrain", []))) == "/gcs/bucket/run/checkpoints/quickstart_pretrain"
    )
    given = load("quickstart_pretrain", ["exp_manager.exp_dir=/runs"])
    assert str(run_folder(given)) == "/runs/quickstart_pretrain"
    given = load("quickstart_pretrain", ["exp_manager.explicit_log_dir=/runs/mine"])
    assert str(run_folder(given)) == "/runs/mine"
