"""Whole training runs on a tiny model: learning, resuming, freezing, starting from a stage before."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from neva.config.load import load
from neva.data.ledger import read_ledger
from neva.data.ledger_proof import prove
from neva.errors import ConfigError
from neva.formats.nemo import open_nemo
from neva.training import callbacks, strategy
from neva.training.callbacks import CURVE, read_metrics
from neva.training.run import train


def run(folder: Path, overrides: list[str], steps: int, name: str = "run") -> Path:
    overrides = [
        *overrides,
        f"exp_manager.exp_dir={folder}",
        f"exp_manager.name={name}",
        f"trainer.max_steps={steps}",
    ]
    return train(load("quickstart_finetune", overrides))


def weights(run_dir: Path, suffix: str = "") -> dict[str, torch.Tensor]:
    nemo = open_nemo(run_dir / "checkpoints" / f"{run_dir.name}{suffix}.nemo")
    return {name: nemo.weights[name].clone() for name in nemo.weights}


def test_a_run_learns_eight_samples_and_leaves_its_files(tmp_path: Path, colours: list[str]) -> None:
    keys = ["model.optim.lr=5e-3", "model.global_batch_size=10", "trainer.peak_tflops=0.25"]
    run_dir = run(tmp_path, [*colours, *keys], steps=150)
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 151))
    assert rows[0]["loss"] > 2.0 and rows[-1]["loss"] < 0.05
    assert rows[-1]["consumed_samples"] == 150 * 10
    assert all(row["mfu"] == pytest.approx(row["tflops"] / 0.25) for row in rows[1:]) and rows[1]["mfu"] > 0
    assert (run_dir / CURVE).stat().st_size > 10_000
    nemo = open_nemo(next((run_dir / "checkpoints").glob("*.nemo")))
    nemo.verify()
    assert set(nemo.manifest["parts"].values()) == {"trained"}
    assert nemo.tokenizer_files and nemo.image_processor is not None


def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(tmp_path: Path, colours: list[str]) -> None:
    every = [*colours, "exp_manager.checkpoint_callback_params.every_n_train_steps=3"]
    unbroken = run(tmp_path / "a", every, steps=7)
    # the same schedule, ended after 4 of 7 steps by a kill between two checkpoints
    killed = [*every, "trainer.max_steps=7"]
    with pytest.raises(Kill):
        kill_after(4, tmp_path / "b", killed)
    resumed = run(tmp_path / "b", every, steps=7)
    assert [row["step"] for row in read_metrics(resumed)] == list(range(1, 8))
    first, second = read_metrics(unbroken), read_metrics(resumed)
    for name in ("loss", "lr", "grad_norm", "consumed_samples"):
        assert [row[name] for row in first] == [row[name] for row in second]
    before, after = weights(unbroken), weights(resumed)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


class Kill(Exception):
    pass


def kill_after(step: int, folder: Path, overrides: list[str]) -> None:
    """Runs until `step` and dies there, as a process does: nothing is saved on the way out."""

    class Killed(callbacks.Progress):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
            if trainer.global_step == step:
                raise Kill

    from neva.training import run as run_module

    original = run_module.Progress
    run_module.Progress = Killed  # type: ignore[misc]
    try:
        train(
            load("quickstart_finetune", [*overrides, f"exp_manager.exp_dir={folder}", "exp_manager.name=run"])
        )
    finally:
        run_module.Progress = original  # type: ignore[misc]


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_leaves_the_environment_as_it_found_it(
    tmp_path: Path, colours: list[str], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    before = dict(os.environ)
    if fails:
        with pytest.raises(Kill):
            kill_after(1, tmp_path, [*colours, "trainer.max_steps=2"])
    else:
        run(tmp_path, colours, steps=1)
    assert dict(os.environ) == before


def test_frozen_parts_stay_and_get_neither_gradient_nor_optimizer_state(
    tmp_path: Path, colours: list[str]
) -> None:
    first = run(tmp_path, colours, steps=2, name="first")
    nemo = next((first / "checkpoints").glob("*.nemo"))
    frozen = [
        *colours,
        f"model.restore_from_path={nemo}",
        "model.mm_cfg.llm.freeze=true",
        "model.mm_cfg.vision_encoder.freeze=true",
    ]
    second = run(tmp_path, frozen, steps=2, name="second")
    before, after = weights(first), weights(second)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"projector"}
    checkpoint = next(path for path in (second / "checkpoints").iterdir() if path.is_dir())
    from megatron.core.dist_checkpointing.serialization import load_tensors_metadata

    states = [
        name for name in load_tensors_metadata(str(checkpoint)) if name.startswith("optimizer.state.exp_avg.")
    ]
    assert states and all("projector" in name for name in states)


def test_stage_two_starts_from_stage_one_projector(tmp_path: Path, colours: list[str]) -> None:
    first = run(tmp_path, colours, steps=2, name="first")
    nemo = next((first / "checkpoints").glob("*.nemo"))
    second = run(
        tmp_path,
        [*colours, f"model.mm_cfg.pretrain_mm_mlp_adapter={nemo}", "model.optim.lr=1e-12"],
        steps=1,
        name="second",
    )
    expected, found = weights(first), weights(second)
    for name in expected:
        same = torch.allclose(expected[name], found[name], atol=1e-9)
        assert same == name.startswith("projector.") or expected[name].ndim == 1
    manifest = open_nemo(next((second / "checkpoints").glob("*.nemo"))).manifest
    assert str(nemo) in json.dumps(manifest)


def test_a_run_that_had_no_average_begins_one_with_its_weights(
    tmp_path: Path, colours: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(run(tmp_path, colours, steps=2))
    said: list[str] = []
    monkeypatch.setattr(strategy.logger, "warning", lambda text, *values: said.append(text % values))
    ema = ["exp_manager.ema.enable=true", "exp_manager.ema.decay=0.25"]
    resumed = run(tmp_path, [*colours, *ema], steps=3)
    assert len(said) == 1 and said[0].endswith(
        "has no moving average of the weights: it begins with those of this step"
    )
    after = weights(resumed)
    for name, value in weights(resumed, "-EMA").items():
        torch.testing.assert_close(value, 0.25 * before[name] + 0.75 * after[name], atol=1e-6, rtol=1e-6)


def test_nan_stops_the_run_and_names_step_and_samples(tmp_path: Path, colours: list[str]) -> None:
    with pytest.raises(FloatingPointError, match=r"at step \d+ \(rank 0\); samples of this rank: \['"):
        run(tmp_path, [*colours, "model.optim.lr=1e30", "trainer.gradient_clip_val=0"], steps=20)


def test_saves_and_the_number_of_skipped_records_are_said(
    tmp_path: Path, colours: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Path(next(word for word in colours if "image_folder" in word).partition("=")[2])
    records = json.loads((images / "data.json").read_text())
    records[1]["image"] = records[4]["image"] = "absent.png"
    (tmp_path / "data.json").write_text(json.dumps(records))
    skip = [
        f"model.data.data_path={tmp_path}/data.json",
        "model.data.on_error=skip",
        "model.data.max_skipped=0.2",
        "model.data.num_workers=2",
    ]
    skip.append("exp_manager.checkpoint_callback_params.every_n_train_steps=2")
    said: list[str] = []
    # on the logger itself: NeMo raises the level of the root's handlers
    monkeypatch.setattr(callbacks.logger, "info", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(callbacks.logger, "warning", lambda text, *values: said.append(text % values))
    run(tmp_path, [*colours, *skip, "model.global_batch_size=10"], steps=3)
    assert said == [
        "saving a checkpoint at step 2",
        "saving a checkpoint at step 3",
        f"2 of 10 records were skipped, the next good one taken instead of each: {tmp_path}/data.json",
    ]
    findings = [*prove(read_ledger(tmp_path / "run"))]
    passed_over = "10 of 10 samples, each once; 2 records gave no sample and were passed over"
    assert [finding.text for finding in findings] == [f"epoch {epoch}: {passed_over}" for epoch in range(3)]


def test_a_gpu_that_is_not_there_is_one_sentence(
    tmp_path: Path, colours: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="trainer.accelerator=gpu, but torch finds no GPU"):
        run(tmp_path, [*colours, "trainer.accelerator=gpu"], steps=1)
