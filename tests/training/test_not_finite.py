"""A step that is not finite: it stops the run and leaves its batch, which is computed again; or it is passed over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from neva.data.batch import Batch
from neva.data.batch_file import read_batches, write_batches
from neva.errors import ConfigError, DataError
from neva.training.callbacks import CURVE, read_metrics
from neva.training.not_finite import FOLDER
from tests.training.test_run import run

DIVERGING = ["model.optim.lr=1e30", "trainer.gradient_clip_val=0"]


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What is logged about such steps."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(f"neva.training.{name}") for name in ("not_finite", "replay")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield messages
    for logger, level in zip(loggers, before, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_it_stops_the_run_and_its_batch_is_computed_again(
    tmp_path: Path, colours: list[str], told: list[str]
) -> None:
    with pytest.raises(FloatingPointError, match=r"at step 2 \(rank 0\); samples of this rank: \['") as error:
        run(tmp_path, [*colours, *DIVERGING], steps=20)
    folder = tmp_path / "run" / FOLDER / "step-000002"
    assert f"trainer.replay={folder}" in str(error.value)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1]
    (file,) = folder.iterdir()
    batches = read_batches(file)
    assert [len(batch.input_ids) for batch in batches] == [2, 2]
    ids = [name for batch in batches for name in batch.record_ids]
    assert str(ids) in str(error.value)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    # with the weights that a run begins with, nothing is wrong with these samples
    run(tmp_path, [*colours, *DIVERGING, f"trainer.replay={folder}"], steps=20)
    assert [line.partition(": loss")[0] for line in told[:2]] == ["micro batch 0", "micro batch 1"]
    assert str(batches[0].record_ids) in told[0]
    assert told[2].startswith("the step is finite with these weights: loss ")
    assert float(told[2].rpartition(" ")[2]) > 0

    # with an image that is no number, that micro batch is named
    harmed = next(number for number, batch in enumerate(batches) if len(batch.pixel_values))
    batches[harmed].pixel_values[0, 0, 0, 0] = torch.nan
    harm = tmp_path / "harmed"
    harm.mkdir()
    write_batches(harm / file.name, batches)
    told.clear()
    run(tmp_path, [*colours, *DIVERGING, f"trainer.replay={harm}"], steps=20)
    assert [("loss nan" in line) for line in told[:2]] == [number == harmed for number in range(2)]
    assert told[2].startswith("loss is nan at step 1 (rank 0)")
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} == set()
    with pytest.raises(ConfigError, match="holds 0 of 1 shares of a step"):
        run(tmp_path, [*colours, f"trainer.replay={tmp_path}"], steps=20)


def test_so_many_in_a_row_stop_a_run_that_passes_over_them(
    tmp_path: Path, colours: list[str], told: list[str]
) -> None:
    skipping = ["trainer.on_nan=skip", "trainer.max_nan_steps=4"]
    with pytest.raises(FloatingPointError, match=r"at step 6 .*, the 5th in a row,"):
        run(tmp_path, [*colours, *DIVERGING, *skipping], steps=20)
    assert len(told) == 4 and all(line.endswith("(trainer.on_nan=skip)") for line in told)
    assert [row["skipped"] for row in read_metrics(tmp_path / "run")] == [0, 1, 1, 1, 1]
    kept = sorted(path.name for path in (tmp_path / "run" / FOLDER).iterdir())
    assert kept == ["step-000002", "step-000003", "step-000004", "step-000006"]
    assert (tmp_path / "run" / CURVE).is_file()


def test_what_is_written_of_a_batch_is_read(tmp_path: Path) -> None:
    from neva.data.batch import SampleOrigin
    from neva.families.media_tokens import PictureShape

    batch = Batch(
        input_ids=torch.tensor([[1, -200, 3]]),
        labels=torch.tensor([[-100, 3, 4]]),
        pixel_values=torch.tensor([0.5, torch.inf]),
        record_ids=["a"],
        num_tokens=3,
        feature_order=torch.tensor([[0, 1]]),
        pictures=[PictureShape(2, 1, 1)],
        num_image_tokens=1,
        sample_lengths=[[3]],
        sample_sources=[[1]],
        origins=[SampleOrigin(0, 7, (7, 8))],
    )
    (found,) = read_batches_of(tmp_path / "batch", [batch])
    for field in fields(Batch):
        expected, read = getattr(batch, field.name), getattr(found, field.name)
        assert torch.equal(read, expected) if isinstance(expected, torch.Tensor) else read == expected
    (tmp_path / "batch").write_bytes(b"no such thing")
    with pytest.raises(DataError, match="cannot be read as micro batches"):
        read_batches(tmp_path / "batch")


def read_batches_of(path: Path, batches: list[Batch]) -> list[Batch]:
    write_batches(path, batches)
    return read_batches(path)
