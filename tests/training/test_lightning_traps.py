"""What Lightning and NeMo keep of a run beside neva, which must not decide where a resumed run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from neva.data.ledger import LedgerStep, read_ledger
from neva.training.callbacks import read_metrics
from neva.training.module import MegatronNevaModel
from tests.training.test_run import Kill, kill_after, run


def steps_of(run_dir: Path) -> list[LedgerStep]:
    return [entry for entry in read_ledger(run_dir) if isinstance(entry, LedgerStep)]


def test_the_data_is_asked_for_once_and_with_the_position_restored(
    tmp_path: Path, colours: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that is made before the checkpoint is read, as `estimated_stepping_batches` makes Lightning do, would
    begin at the first sample (Lightning's pull request 21765); one that is made twice would go on twice."""
    asked: list[tuple[int, int]] = []
    loader = MegatronNevaModel.train_dataloader

    def counted(module: MegatronNevaModel) -> object:
        asked.append((module.trainer.global_step, module.consumed_samples))
        return loader(module)

    monkeypatch.setattr(MegatronNevaModel, "train_dataloader", counted)
    run(tmp_path, colours, steps=3)
    run(tmp_path, colours, steps=5)
    assert asked == [(0, 0), (3, 12)]


def test_steps_and_samples_are_counted_once_over_ends_kills_and_epochs(
    tmp_path: Path, colours: list[str]
) -> None:
    """NeMo's epochs at the end of a run and Lightning's batches within one are not counted beside the steps (NeMo's
    issues 6734 and 11481): 10 records in batches of 4, so that each part ends within an epoch or begins one. The epoch
    that is logged, and stands in names, is that of the data; Lightning's is 0 up to the end of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = [
        *colours,
        "model.drop_last=false",
        "exp_manager.checkpoint_callback_params.filename='run-{step}-{consumed_samples}-{epoch}'",
        "exp_manager.checkpoint_callback_params.every_n_train_steps=2",
    ]
    whole = run(tmp_path / "whole", settings, steps=11)
    begun = [step.epoch for step in steps_of(whole)]
    events = EventAccumulator(str(whole / "version_0")).Reload()
    assert [event.value for event in events.Scalars("epoch")] == begun
    with pytest.raises(Kill):
        kill_after(3, tmp_path, [*settings, "trainer.max_steps=5"])
    for steps in (5, 6, 11):
        run_dir = run(tmp_path, settings, steps=steps)
        rows = read_metrics(run_dir)
        assert [(row["step"], row["consumed_samples"], row["epoch"]) for row in rows] == [
            (n, 4.0 * n, epoch) for n, epoch in enumerate(begun[:steps], start=1)
        ]
        (last,) = (run_dir / "checkpoints").glob("*-last")
        assert f"step={steps}-consumed_samples={4.0 * steps}-epoch={begun[steps - 1]}" in last.name
    assert steps_of(run_dir) == steps_of(whole)
    epochs = [epoch for step in steps_of(whole) for epoch, _ in step.stands_for()]
    assert [epochs.count(epoch) for epoch in range(5)] == [10, 10, 10, 10, 4]
