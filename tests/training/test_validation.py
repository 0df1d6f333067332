"""Validation while a run trains: the loss of the whole held-out set, and not a bit of difference to the training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from neva.training.callbacks import CURVE, read_metrics
from neva.training.module import MegatronNevaModel
from neva.training.validation import Validation
from tests.training.test_run import Kill, kill_after, run, weights

FREEZES = ("llm.freeze", "vision_encoder.freeze", "mm_mlp_adapter_freeze")
TRAINED = ("loss", "lr", "grad_norm", "label_tokens", "consumed_samples")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, colours: list[str]) -> list[str]:
    """Overrides that hold out seven of the ten records, once more: they fill a batch of 4 and part of another."""
    path = tmp_path_factory.mktemp("held_out") / "held_out.json"
    data = next(word for word in colours if "data_path" in word).partition("=")[2]
    path.write_text(json.dumps(json.loads(Path(data).read_text())[3:]))
    return [f"model.data.validation={path}", "trainer.val_check_interval=2"]


def rows(run_dir: Path, *names: str) -> list[list[float]]:
    return [[row[name] for name in names] for row in read_metrics(run_dir)]


def validated(run_dir: Path) -> dict[int, float]:
    return {int(row["step"]): row["val_loss"] for row in read_metrics(run_dir) if "val_loss" in row}


@dataclass(frozen=True)
class Runs:
    """Seven steps of the same training: without validation, with it, and with it and a kill between two checkpoints."""

    overrides: list[str]
    """Of the latter two."""
    plain: Path
    unbroken: Path
    resumed: Path
    recorded: list[dict[str, torch.Tensor]]
    """Weights of the unbroken run before its first step, and behind each."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, colours: list[str], held_out: list[str]) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    kept = ["monitor=val_loss", "mode=min", "save_top_k=2", "every_n_train_steps=2"]
    every = [*colours, "model.optim.lr=0.5", "exp_manager.checkpoint_callback_params.every_n_train_steps=2"]
    plain = run(folder / "plain", every, steps=7)
    ranked = [*colours, "model.optim.lr=0.5", *held_out]
    ranked += [f"exp_manager.checkpoint_callback_params.{word}" for word in kept]
    ranked += [f"exp_manager.ema.{word}" for word in ("enable=true", "decay=0.75", "every_n_steps=2")]
    with pytest.MonkeyPatch.context() as patch:
        recorded = recording(patch)
        unbroken = run(folder / "a", ranked, steps=7)
    # killed behind the checkpoint of step 2, in the middle of an interval
    with pytest.raises(Kill):
        kill_after(3, folder / "b", [*ranked, "trainer.max_steps=7"])
    resumed = run(folder / "b", ranked, steps=7)
    return Runs(ranked, plain, unbroken, resumed, recorded)


def test_validation_leaves_no_trace_in_a_training(runs: Runs) -> None:
    assert rows(runs.unbroken, *TRAINED) == rows(runs.plain, *TRAINED)
    before, after = weights(runs.plain), weights(runs.unbroken)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert list(validated(runs.unbroken)) == [2, 4, 6, 7]
    assert validated(runs.plain) == {}


def test_the_average_is_that_of_the_weights_behind_every_second_step(runs: Runs) -> None:
    average = {name: value.double() for name, value in runs.recorded[0].items()}
    for step in (1, 3, 5, 7):
        average = {name: 0.75 * value + 0.25 * runs.recorded[step][name] for name, value in average.items()}
    averaged, after = weights(runs.unbroken, "-EMA"), weights(runs.unbroken)
    for name, value in averaged.items():  # four updates in float32, of weights up to 4
        torch.testing.assert_close(value.double(), average[name][: len(value)], atol=1e-6, rtol=1e-6)
    assert max(float((averaged[name] - after[name]).abs().max()) for name in after) > 0.1


def test_a_run_goes_on_exactly_in_the_middle_of_an_interval(runs: Runs) -> None:
    assert validated(runs.resumed) == validated(runs.unbroken)
    assert rows(runs.resumed, *TRAINED) == rows(runs.plain, *TRAINED)
    averaged = weights(runs.unbroken, "-EMA")
    assert all(torch.equal(value, averaged[name]) for name, value in weights(runs.resumed, "-EMA").items())


def test_a_finished_run_validates_alone_and_writes_nothing(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs.unbroken.parent
    evaluated = [
        *runs.overrides,
        "trainer.skip_train=true",
        *(f"model.mm_cfg.{part}=true" for part in FREEZES),
    ]
    files = sorted(folder.rglob("*"))
    figures = []
    validate = Validation.on_train_start

    def spied(self: Validation, *given: Any) -> None:
        validate(self, *given)
        figures.append((self.step, self.losses))

    monkeypatch.setattr(Validation, "on_train_start", spied)
    run(folder, evaluated, steps=7)
    assert figures == [(7, {"val_loss": validated(runs.unbroken)[7]})]
    assert sorted(folder.rglob("*")) == files, "nothing is written"


def test_the_best_checkpoints_are_kept_and_the_last(runs: Runs) -> None:
    losses = validated(runs.unbroken)
    best = sorted([2, 4, 6], key=lambda step: losses[step])[:2]
    assert set(best) != {4, 6}, "the last two are what any order would keep"
    for run_dir in (runs.unbroken, runs.resumed):
        names = [path.name for path in (run_dir / "checkpoints").iterdir() if path.is_dir()]
        steps = {int(name.partition("step=")[2].partition("-")[0]) for name in names if "-last" not in name}
        assert steps == {*best, 7}, (names, losses)


def test_the_last_loss_is_that_of_the_training_loop(
    runs: Runs, tmp_path: Path, colours: list[str], held_out: list[str]
) -> None:
    """One step over the held-out records alone, from the final average."""
    nemo = runs.unbroken / "checkpoints" / "run-EMA.nemo"
    path = held_out[0].partition("=")[2]
    same = [*colours, f"model.restore_from_path={nemo}", f"model.data.data_path={path}"]
    same += ["model.global_batch_size=7", "model.micro_batch_size=7"]
    (first,) = rows(run(tmp_path / "same", same, steps=1), "loss")
    # float32: other lengths of padding
    torch.testing.assert_close(validated(runs.unbroken)[7], first[0], atol=1e-5, rtol=1e-5)


def recording(patch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Returns what will hold the weights before the first step, and behind each, of the runs from now on."""
    found: list[dict[str, torch.Tensor]] = []
    take_step = MegatronNevaModel.training_step

    def spied(self: MegatronNevaModel, *given: Any) -> None:
        for is_behind in (False, True):
            if is_behind:
                take_step(self, *given)
            if is_behind or not found:
                named = self.models[0].named_parameters()
                found.append({name: value.detach().clone() for name, value in named})

    patch.setattr(MegatronNevaModel, "training_step", spied)
    return found


def test_a_share_of_an_epoch_the_curve_and_tensorboard(tmp_path: Path, colours: list[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    split = [
        "model.data.validation_split=0.3",
        "trainer.val_check_interval=0.5",
        "trainer.limit_val_batches=1",
    ]
    run_dir = run(
        tmp_path, [*colours, *split, "model.global_batch_size=2", "trainer.log_every_n_steps=100"], 5
    )
    count = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])
    assert count["consumed_samples"] == 2
    losses = validated(run_dir)
    assert list(losses) in ([1, 2, 3, 4, 5], [2, 4, 5])  # six to eight records train
    events = EventAccumulator(str(run_dir / "version_0")).Reload()
    logged = {event.step + 1: event.value for event in events.Scalars("val_loss")}
    assert logged == pytest.approx(losses, rel=1e-6)  # TensorBoard has float32
    assert (run_dir / CURVE).stat().st_size > 10_000
