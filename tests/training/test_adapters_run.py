"""Runs with adapters: what trains, what is saved, exact resume, and answers from the files that are left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional

from neva.distributed import groups
from neva.errors import CheckpointError
from neva.formats.nemo import open_nemo, write_nemo
from neva.inference.load import load_assistant
from neva.model.llava import NevaModel
from neva.training.callbacks import read_metrics
from tests.training.test_run import Kill, kill_after, run, weights

LORA = [
    "model.peft.peft_scheme=lora",
    "model.peft.lora_tuning.target_modules=[all]",
    "model.peft.lora_tuning.adapter_dim=4",
    "model.peft.lora_tuning.adapter_dropout=0.3",
    "model.mm_cfg.llm.freeze=true",
    "model.mm_cfg.vision_encoder.freeze=true",
    "model.optim.lr=1e-2",
]


def nemo_of(run_dir: Path) -> Path:
    return next((run_dir / "checkpoints").glob("*.nemo"))


def loaded(path: Path) -> NevaModel:
    groups.init_process_group(0, 1)  # the runs have left theirs
    groups.init_model_parallel(groups.ParallelSizes(), seed=1)
    return load_assistant(path, torch.device("cpu"), torch.float32, None, None, None).model


def test_a_run_saves_adapters_and_lengths_and_resumes_bit_for_bit_with_dropout(
    tmp_path: Path, colours: list[str]
) -> None:
    base = nemo_of(run(tmp_path, colours, steps=2, name="base"))
    every = [
        *colours,
        *LORA,
        "model.peft.peft_scheme=dora",
        "model.peft.lora_tuning.vision_target_modules=[q_proj,fc2]",
        f"model.restore_from_path={base}",
        "exp_manager.checkpoint_callback_params.every_n_train_steps=2",
    ]
    unbroken = run(tmp_path / "a", every, steps=4)
    with pytest.raises(Kill):
        kill_after(3, tmp_path / "b", [*every, "trainer.max_steps=4"])
    resumed = run(tmp_path / "b", every, steps=4)
    for name in ("loss", "grad_norm"):
        first, second = ([row[name] for row in read_metrics(folder)] for folder in (unbroken, resumed))
        assert first == second
    before, after = weights(unbroken), weights(resumed)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)

    # what is saved is what trains, and names its base
    assert all(".adapter." in name or name.startswith("projector.") for name in before)
    nemo = open_nemo(nemo_of(resumed))
    assert nemo.manifest["base"]["language_model"]["path"] == str(base)
    assert all(before[name].any() for name in before if name.endswith("linear_out")), (
        "all factors have learnt"
    )
    of_base = open_nemo(base).weights
    for name, length in before.items():
        if name.endswith(".magnitude"):  # one step of Adam or four from what the rows had
            start = of_base[name.replace(".adapter.whole.magnitude", ".weight")].norm(dim=1)
            assert 0 < (length - start).abs().max() < 0.1, name

    # the run's own weights, from its .nemo and from its checkpoint
    checkpoint = next(path for path in (resumed / "checkpoints").iterdir() if path.name.endswith("-last"))
    found = {path: dict(loaded(path).named_parameters()) for path in (nemo_of(resumed), checkpoint)}
    one, other = found.values()
    assert all(torch.equal(one[name], other[name]) for name in one)
    whole = open_nemo(base).weights
    for name, value in one.items():
        expected = before[name] if name in before else whole[name][: len(value)]
        assert torch.equal(value[: len(expected)], expected), name

    # beside another base, the checkpoint is neither continued nor read
    _nudge(base)
    for again in (lambda: run(tmp_path / "b", every, steps=6), lambda: loaded(checkpoint)):
        with pytest.raises(
            CheckpointError, match="is another language_model than .* adapters of .* were trained"
        ):
            again()


@pytest.mark.filterwarnings(
    "ignore:FSDP2-wrapped module:UserWarning"
)  # torch's remark on the projector's view
@pytest.mark.parametrize("layout", ["model.fsdp=false", "model.fsdp=true"])
def test_factors_learn_at_one_rate_beside_tower_and_language_model(
    tmp_path: Path, colours: list[str], layout: str
) -> None:
    both = [
        *colours,
        *LORA,
        layout,
        "model.peft.lora_tuning.vision_target_modules=[all]",
        "model.peft.lora_tuning.adapter_dropout=0",
        "model.mm_cfg.vision_encoder.vision_encoder_lr_ratio=0.25",
        "model.optim.sched.warmup_steps=0",
    ]
    found = weights(run(tmp_path, both, steps=1))
    furthest = {
        part: max(float(value.abs().max()) for name, value in found.items()
                  if name.startswith(part) and name.endswith("linear_out"))
        for part in ("vision_tower", "language_model")
    }  # fmt: skip
    # the first step of Adam is the learning rate, from zero, but for its epsilon
    assert furthest == pytest.approx({"vision_tower": 1e-2, "language_model": 1e-2}, rel=1e-3)


def _nudge(path: Path) -> None:
    """Moves a number of a language model, in place."""

    def moved(name: str, value: torch.Tensor) -> torch.Tensor:
        if name == "language_model.decoder.layers.1.mlp.linear_fc2.weight":
            value[0, 0] += 1e-3
        return value

    _rewrite(path, path, moved)


def _rounded(path: Path) -> Path:
    """Writes the file with each matrix of the language model's layers as it is behind nf4, in blocks of 64."""

    def unpacked(name: str, value: torch.Tensor) -> torch.Tensor:
        if not name.startswith("language_model.decoder.layers.") or value.ndim < 2:
            return value
        packed, state = functional.quantize_4bit(value.flatten(), blocksize=64, quant_type="nf4")
        found: torch.Tensor = functional.dequantize_4bit(packed, state).view(value.shape)
        assert 0.05 < (found - value).norm() / value.norm() < 0.1, name  # nf4 of normal numbers: 9 %
        return found

    return _rewrite(path, path.parent / "rounded.nemo", unpacked)


def _rewrite(path: Path, target: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    held = open_nemo(path)
    changed = {name: change(name, held.weights[name].clone()) for name in held.weights}
    tokenizer = held.extract_tokenizer(path.parent / "tokenizer")
    write_nemo(target, held.config, changed.items(), tokenizer, held.image_processor, "x", {}, overwrite=True)
    return target


@pytest.mark.filterwarnings(
    "ignore:FSDP2-wrapped module:UserWarning"
)  # torch's remark on the projector's view
def test_packed_matrices_train_as_rounded_ones_and_under_fsdp_too(tmp_path: Path, colours: list[str]) -> None:
    base = nemo_of(run(tmp_path, [*colours, "model.optim.lr=5e-3"], steps=30, name="base"))
    common = [*colours, *LORA, "model.peft.lora_tuning.adapter_dropout=0"]
    rounded = [*common, f"model.restore_from_path={_rounded(base)}"]
    packed = [*common, f"model.restore_from_path={base}", "model.peft.peft_scheme=qlora"]
    losses = {}
    for name, overrides in (("lora", rounded), ("qlora", packed), ("fsdp", [*packed, "model.fsdp=true"])):
        losses[name] = [row["loss"] for row in read_metrics(run(tmp_path, overrides, steps=6, name=name))]
    # float32 sums in another order
    assert losses["qlora"] == pytest.approx(losses["lora"], rel=1e-5)
    assert losses["fsdp"] == pytest.approx(losses["qlora"], rel=1e-5)
    saved = weights(tmp_path / "qlora")
    assert all(".adapter." in name or name.startswith("projector.") for name in saved)
