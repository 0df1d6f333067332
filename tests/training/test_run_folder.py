"""One run folder, one run: it goes on with the next sample, is left alone when finished, and belongs to one process."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neva.checkpoint.checksums import CHECKSUMS
from neva.checkpoint.index import ABOUT, ranked_value
from neva.config.load import load
from neva.constants import LOGGED_VALUES
from neva.errors import CheckpointError, ConfigError, DataError, LaunchError
from neva.findings import Findings
from neva.optim.preflight import find_steps
from neva.training.callbacks import CURVE, read_metrics
from neva.training.run_folder import LOCK, locked, resume_points
from neva.training.start import standing_of
from tests.training.test_guards import steps_of
from tests.training.test_run import run


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def three_steps(tmp_path: Path, colours: list[str]) -> tuple[Path, list[str]]:
    """A run of 3 steps of 4 of a copy of the 10 records, in the order of the file, and its overrides."""
    source = next(item.split("=")[1] for item in colours if item.startswith("model.data.data_path="))
    shutil.copy(source, tmp_path / "data.json")
    overrides = [
        *colours,
        f"model.data.data_path={tmp_path}/data.json",
        "model.data.dataloader_type=sequential",
    ]
    run(tmp_path, overrides, steps=3)
    return tmp_path, overrides


def test_another_batch_size_goes_on_with_the_next_sample_to_the_last_step(
    three_steps: tuple[Path, list[str]],
) -> None:
    folder, overrides = three_steps
    run_dir = run(folder, [*overrides, "model.global_batch_size=2"], steps=8)
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert {*LOGGED_VALUES} <= set(rows[0])
    assert [row["consumed_samples"] for row in rows] == [4, 8, 12, 14, 16, 18, 20, 22]
    # label tokens of records 4-5, 6-7, 8-9 of the second epoch, then 0-1, 2-3 of the third; 8 and 9 are text
    unbroken = run(folder, [*overrides, "model.global_batch_size=2"], steps=5, name="unbroken")
    labels = [row["label_tokens"] for row in read_metrics(unbroken)]
    assert [row["label_tokens"] for row in rows[3:]] == [
        labels[2],
        labels[3],
        labels[4],
        labels[0],
        labels[1],
    ]


@pytest.mark.parametrize(
    ("sizes", "epochs", "steps"),
    [((4, 2), 1, 1 + 3), ((2, 8), 1, 1 + 1), ((4, 2), 2, 1 + 3 + 5)],
)
def test_another_batch_size_takes_the_epochs_to_their_end_and_no_further(
    tmp_path: Path, colours: list[str], sizes: tuple[int, int], epochs: int, steps: int
) -> None:
    first, second = (
        [*colours, f"trainer.max_epochs={epochs}", f"model.global_batch_size={n}"] for n in sizes
    )
    run(tmp_path, first, steps=1)
    cfg = load("quickstart_finetune", [*second, f"exp_manager.exp_dir={tmp_path}", "exp_manager.name=run"])
    found = Findings()
    assert find_steps(cfg, 10, standing_of(cfg), found) == steps
    left = 10 * epochs - sizes[0]
    assert found.facts == [
        ("steps", f"{steps} in all, 1 of them taken ({left} samples), {10 // sizes[1]} in an epoch")
    ]
    for limit in (2, 100):
        run_dir = run(tmp_path, second, steps=limit)
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, steps + 1))
    seen = [number for step in steps_of(run_dir) for number in step.numbers]
    assert [seen.count(number) for number in range(10)] == [epochs] * 10


def test_a_run_whose_time_is_up_has_logged_the_step_that_it_goes_on_behind(
    tmp_path: Path, colours: list[str]
) -> None:
    timed = [*colours, "+exp_manager.max_time_per_run=00:00:00:01"]
    last = 0
    for _ in range(2):
        run_dir = run(tmp_path, timed, steps=100_000)
        steps = [int(row["step"]) for row in read_metrics(run_dir)]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) > last
        assert (run_dir / CURVE).is_file()
        (link,) = (run_dir / "checkpoints").glob("*-last")
        assert f"-step={(last := len(steps))}-" in link.name


def test_batches_of_one_modality_resume_with_another_batch_size(tmp_path: Path, colours: list[str]) -> None:
    grouped = [*colours, "model.data.dataloader_type=modality", "model.mega_batch_mult=50"]
    run(tmp_path, grouped, steps=2)
    run_dir = run(tmp_path, [*grouped, "model.global_batch_size=2"], steps=3)
    every_record = [*colours, "model.data.dataloader_type=single", "model.global_batch_size=2"]
    whole = run(tmp_path, every_record, steps=5, name="whole")
    labels = [[int(row["label_tokens"]) for row in read_metrics(folder)] for folder in (run_dir, whole)]
    assert sum(labels[0]) == sum(labels[1])  # 4 + 4 + 2 of the 10 records, which is each of them
    with pytest.raises(DataError, match="mega_batch_mult was 50 and is 1"):
        run(tmp_path, [*grouped, "model.mega_batch_mult=1"], steps=4)
    with pytest.raises(ConfigError, match="goes through the 10 records once"):
        run(tmp_path, every_record, steps=6, name="twice")


def test_records_that_were_appended_are_refused_unless_they_begin_an_epoch(
    three_steps: tuple[Path, list[str]],
) -> None:
    folder, overrides = three_steps
    records = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps([*records, *records[:4]]))
    before = contents(folder / "run" / "checkpoints")
    with pytest.raises(
        DataError, match=r"records was 10 and is 14, content was .* model\.data\.on_change=new_epoch"
    ):
        run(folder, overrides, steps=5)
    assert contents(folder / "run" / "checkpoints") == before
    run_dir = run(folder, [*overrides, "model.data.on_change=new_epoch"], steps=5)
    rows = read_metrics(run_dir)
    assert [row["label_tokens"] for row in rows[3:]] == [row["label_tokens"] for row in rows[:2]]


@pytest.mark.parametrize("steps", [3, 2])
def test_a_finished_run_is_left_alone(
    three_steps: tuple[Path, list[str]], steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder, overrides = three_steps
    before = contents(folder)
    with caplog.at_level("INFO"):
        assert run(folder, overrides, steps=steps) == folder / "run"
    assert contents(folder) == before
    assert f"run is already at step 3 of {steps}: raise trainer.max_steps" in caplog.text


def test_a_run_that_must_go_on_from_a_checkpoint_does_not_start_without(
    tmp_path: Path, colours: list[str]
) -> None:
    must = [*colours, "exp_manager.resume_ignore_no_checkpoint=false"]
    with pytest.raises(
        ConfigError, match=r"=false and .*run/checkpoints has no checkpoint: look for the run's"
    ):
        run(tmp_path, must, steps=1)
    run(tmp_path, colours, steps=1)
    assert [row["step"] for row in read_metrics(run(tmp_path, must, steps=2))] == [1, 2]


def test_a_run_that_lacks_its_nemo_is_not_finished(three_steps: tuple[Path, list[str]]) -> None:
    folder, overrides = three_steps
    nemo = folder / "run/checkpoints/run.nemo"
    nemo.unlink()
    run(folder, overrides, steps=3)
    assert nemo.is_file()


def test_a_worker_that_outlives_its_run_keeps_no_other_out(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work() -> None:
        theirs.send("begun")
        time.sleep(60)

    with locked(tmp_path, is_writer=True):
        worker = context.Process(target=work)
        worker.start()
        assert ours.recv() == "begun"
    with locked(tmp_path, is_writer=True):
        assert worker.is_alive()
    worker.terminate()
    worker.join()


def test_a_second_run_in_a_folder_is_refused_with_the_first_ones_process(
    tmp_path: Path, colours: list[str]
) -> None:
    with locked(tmp_path / "run", is_writer=True):
        owner = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d')} "
        with pytest.raises(
            LaunchError, match=rf"run belongs to a run that goes on \({owner}\S+ \S+\): wait for its end"
        ):
            run(tmp_path, colours, steps=1)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        with locked(tmp_path / "run", is_writer=False):  # another rank of the same run
            pass
    assert (tmp_path / "run" / LOCK).is_file()
    run(tmp_path, colours, steps=1)


def test_what_other_programs_left_in_the_environment_changes_nothing(
    tmp_path: Path, colours: list[str]
) -> None:
    expected = run(tmp_path, colours, steps=2, name="clean")
    stale = ("GROUP_RANK", "RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "JSM_NAMESPACE_RANK")
    done = subprocess.run(
        [sys.executable, "-m", "neva", "train", "--config-name", "quickstart_finetune", *colours]
        + [f"exp_manager.exp_dir={tmp_path}", "exp_manager.name=stale", "trainer.max_steps=2"],
        env={**os.environ, **dict.fromkeys(stale, "1"), "WORLD_SIZE": "1", "SLURM_LOCALID": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = tmp_path / "stale"

    def files(folder: Path) -> list[str]:
        names = (str(path.relative_to(folder)) for path in folder.rglob("*") if "version_" not in str(path))
        return sorted(name.replace(folder.name, "run") for name in names)

    # the command's log of itself is written by runs of the command alone
    assert files(found) == files(expected)
    for name in ("loss", "grad_norm", "consumed_samples"):
        assert [row[name] for row in read_metrics(found)] == [row[name] for row in read_metrics(expected)]


def cut(content: bytes) -> bytes:
    return content[:-1]


def changed(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_a_damaged_last_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, colours: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    every = [*colours, "exp_manager.checkpoint_callback_params.every_n_train_steps=2"]
    losses = [row["loss"] for row in read_metrics(run(tmp_path, every, steps=6, name="unbroken"))]
    run_dir = run(tmp_path, every, steps=5)
    shutil.copytree(run_dir, tmp_path / "whole", symlinks=True)
    for harm, found in ((cut, "has "), (changed, "has another content than was written")):
        shutil.rmtree(run_dir)
        shutil.copytree(tmp_path / "whole", run_dir, symlinks=True)
        last = max((run_dir / "checkpoints").glob("*-step=5-*[0-9]"))
        (shard, *_) = sorted(last.glob("*.distcp"))
        shard.write_bytes(harm(shard.read_bytes()))
        with caplog.at_level("WARNING"):
            run(tmp_path, every, steps=6)
        assert f"{last} is damaged ({shard.name} {found}" in caplog.text and "goes on from" in caplog.text
        rows = read_metrics(run_dir)
        assert [row["step"] for row in rows] == list(range(1, 7))
        assert [row["loss"] for row in rows[:4]] == losses[:4]


def as_before(checkpoints: Path) -> Path:
    """Gives the newest checkpoint the form that it had before: a folder called `-last` that says nothing of itself."""
    (link,) = checkpoints.glob("*-last")
    newest = link.resolve()
    link.unlink()
    (newest / ABOUT).unlink()
    listed = json.loads((newest / CHECKSUMS).read_text())
    (newest / CHECKSUMS).write_text(json.dumps({name: listed[name] for name in listed if name != ABOUT}))
    return newest.rename(link)


def test_of_two_last_checkpoints_the_newest_whole_one_is_continued_and_the_other_set_aside(
    three_steps: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, overrides = three_steps
    last = as_before(folder / "run" / "checkpoints")
    other = last.with_name("run-step=2-consumed_samples=8.0-last")
    shutil.copytree(last, other)
    with caplog.at_level("WARNING"):
        run_dir = run(folder, overrides, steps=4)
    assert f"{other} is not the newest whole one of several last checkpoints: moved to" in caplog.text
    assert [row["step"] for row in read_metrics(run_dir)] == [1, 2, 3, 4]
    assert [path.name for path in (run_dir / "passed_over").iterdir()] == [other.name]
    (only,) = (run_dir / "checkpoints").glob("*-last")
    assert "step=4" in only.name and only.is_symlink()


def test_a_checkpoint_counts_whatever_it_is_called_and_one_that_no_other_replaces_must_be_whole(
    three_steps: tuple[Path, list[str]],
) -> None:
    folder, overrides = three_steps
    (last,) = (folder / "run" / "checkpoints").glob("*-last")
    ranked = last.resolve().rename(last.with_name("mine"))
    last.unlink()
    cfg = load("quickstart_finetune", [*overrides, f"exp_manager.exp_dir={folder}", "exp_manager.name=run"])
    assert resume_points(cfg) == [ranked]
    (ranked / "common.pt").unlink()
    with pytest.raises(
        CheckpointError, match=r"is damaged \(common\.pt is missing\) and the run has no other"
    ):
        run(folder, overrides, steps=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("multistep-step=12-consumed_samples=48.0", 12.0),
        ("run--step=3-last", 3.0),
        ("run--val_loss=0.25-step=7", 7.0),
        ("steps-consumed_samples=8.0", None),
    ],
)
def test_a_checkpoint_is_ranked_by_what_its_name_says(name: str, value: float | None) -> None:
    assert ranked_value(name, "step") == value


def test_a_run_continues_in_folders_that_read_like_what_is_monitored(
    tmp_path: Path, colours: list[str]
) -> None:
    kept = [
        f"exp_manager.checkpoint_callback_params.{word}" for word in ("every_n_train_steps=1", "save_top_k=2")
    ]
    for steps in (2, 4):
        run_dir = run(tmp_path / "by_step", [*colours, *kept], steps, name="multistep")
    folders = [
        path.name for path in (run_dir / "checkpoints").iterdir() if path.is_dir() and not path.is_symlink()
    ]
    assert sorted(ranked_value(name, "step") for name in folders) == [2, 3, 4]  # the newest, and two others
    assert len(read_metrics(run_dir)) == 4


def test_a_run_with_experts_logs_the_losses_of_its_routers(tmp_path: Path, colours: list[str]) -> None:
    experts = ["model.num_moe_experts=4", "model.moe_router_topk=2", "model.moe_aux_loss_coeff=0.01"]
    (row,) = read_metrics(run(tmp_path, [*colours, *experts, "model.moe_z_loss_coeff=0.001"], steps=1))
    # between experts that serve alike, and all tokens at the same two of four
    assert 1 < row["load_balancing_loss"] < 2
    # above that of logits of 0, whose softmax has four terms of 1: those of drawn weights lie around it
    assert math.log(4) ** 2 < row["z_loss"] < 2 * math.log(4) ** 2
