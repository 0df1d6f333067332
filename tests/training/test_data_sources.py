"""Training from shards and from a mixture: the numbers of the same records in one file, resumed too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neva import cli
from neva.training.callbacks import read_metrics
from tests.training.test_run import Kill, kill_after, run

EVERY = "exp_manager.checkpoint_callback_params.every_n_train_steps=1"


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run_dir)]


@pytest.fixture
def sources(tmp_path: Path, colours: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """All ten records as shards, and as a mixture of a file with the first six and shards with the others."""
    images = Path(next(word for word in colours if "image_folder" in word).partition("=")[2])
    records = json.loads((images / "data.json").read_text())
    (tmp_path / "first.json").write_text(json.dumps(records[:6]))
    (tmp_path / "last.json").write_text(json.dumps(records[6:]))
    for source, target in ((images / "data.json", "all"), (tmp_path / "last.json", "rest")):
        flags = ["--image-folder", str(images), "--samples-per-shard", "3"]
        assert cli.main(["data", "convert", str(source), str(tmp_path / target), *flags]) == 0
    parts = f"[{tmp_path}/first.json,{{path:{tmp_path}/rest,image_folder:null,weight:1}}]"
    return {"shards": f"{tmp_path}/all", "mixture": parts}


def of_sources(run_dir: Path) -> list[tuple[float, ...]]:
    """Step, and losses and validation losses of the two parts, where they were logged."""
    names = [f"{of}/{source}" for of in ("loss", "val_loss") for source in ("first.json", "rest")]
    rows = [row for row in read_metrics(run_dir) if any(name in row for name in names)]
    return [(row["step"], *(row.get(name, 0.0) for name in names)) for row in rows]


def test_a_mixture_logs_the_loss_of_each_source_and_a_resumed_run_the_same(
    tmp_path: Path, colours: list[str], sources: dict[str, str]
) -> None:
    mixture = [*colours, f"model.data.data_path={sources['mixture']}", EVERY, "trainer.log_every_n_steps=3"]
    mixture += ["model.data.validation_split=0.3", "trainer.val_check_interval=4"]
    unbroken = run(tmp_path / "a", mixture, steps=4)
    found = of_sources(unbroken)
    assert [row[0] for row in found] == [3, 4] and all(value > 0 for row in found for value in row[1:3])
    assert found[0][3:] == (0, 0) and sum(found[1][3:]) > 0
    # steps 1 to 3, and 4 alone: between the losses of their sources lies that of all
    every = losses(unbroken)
    assert min(found[1][1:3]) <= every[3] <= max(found[1][1:3])
    assert min(found[0][1:3]) <= max(every[:3]) and min(every[:3]) <= max(found[0][1:3])
    events = EventAccumulator(str(unbroken / "version_0")).Reload()
    logged = [(event.step + 1, event.value) for event in events.Scalars("loss/rest")]
    assert logged == [(row[0], pytest.approx(row[2], rel=1e-6)) for row in found]  # TensorBoard has float32
    with pytest.raises(Kill):
        kill_after(2, tmp_path / "b", [*mixture, "trainer.max_steps=4"])
    assert of_sources(run(tmp_path / "b", mixture, steps=4)) == found


def test_shards_and_a_mixture_train_as_one_file_does_and_resume(
    tmp_path: Path, colours: list[str], sources: dict[str, str]
) -> None:
    expected = losses(run(tmp_path / "json", colours, steps=3))
    assert len(expected) == 3
    shards = [*colours, f"model.data.data_path={sources['shards']}", "model.data.image_folder=null"]
    assert losses(run(tmp_path / "shards", shards, steps=3)) == expected
    mixture = [*colours, f"model.data.data_path={sources['mixture']}", EVERY]
    with pytest.raises(Kill):
        kill_after(2, tmp_path / "mixture", [*mixture, "trainer.max_steps=3"])
    assert losses(run(tmp_path / "mixture", mixture, steps=3)) == expected
