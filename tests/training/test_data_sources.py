"""Training from shards and from a mixture: the numbers of the same records in one file, resumed too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
