"""Whole runs in several processes: the same losses, one `.nemo`, and checkpoints that continue in another layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from neva.data.ledger import LedgerStep, read_ledger
from neva.formats.nemo import open_nemo
from neva.training.callbacks import read_metrics
from tests.megatron import run_neva
from tests.training.conftest import colours  # noqa: F401

TENSOR = ["trainer.devices=2", "model.tensor_model_parallel_size=2", "model.sequence_parallel=true"]
PIPELINE = [
    "trainer.devices=2",
    "model.pipeline_model_parallel_size=2",
    "model.virtual_pipeline_model_parallel_size=2",
]
CONTEXT = ["trainer.devices=2", "model.context_parallel_size=2"]
SHARDED = ["model.optim.name=distributed_fused_adam"]
EMA = ("exp_manager.ema.enable=true", "exp_manager.ema.decay=0.8")
FSDP = ["trainer.devices=2", "model.fsdp=true"]


def train(folder: Path, overrides: list[str], steps: int) -> Path:
    """Trains in as many processes as `overrides` say; returns the folder of the run."""
    fixed = [f"exp_manager.exp_dir={folder}", "exp_manager.name=run", f"trainer.max_steps={steps}"]
    every = "exp_manager.checkpoint_callback_params.every_n_train_steps=2"
    words = [*overrides, *fixed, every, "model.data.pad_to_multiple_of=4"]
    folder.mkdir(exist_ok=True)
    log = folder / f"log.{steps}"
    size = 2 if "trainer.devices=2" in overrides else 1
    codes = run_neva(["train", "--config-name", "quickstart_finetune", *words], log, size)
    assert codes == [0] * size, log.read_text()[-3000:]
    return folder / "run"


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run_dir)]


def samples(run_dir: Path) -> list[str]:
    return [file.read_text() for file in sorted((run_dir / "samples").iterdir())]


def weights(run_dir: Path, name: str = "run") -> dict[str, torch.Tensor]:
    nemo = open_nemo(run_dir / "checkpoints" / f"{name}.nemo")
    return {name: nemo.weights[name].clone() for name in nemo.weights}


def handed_over(source: Path, target: Path) -> Path:
    """Makes `target` a run that was stopped where `source` saved its checkpoint of step 4."""
    (saved,) = (source / "checkpoints").glob("*-step=4-*")
    shutil.copytree(saved, target / "run" / "checkpoints" / saved.name)
    return target


def consumed(run_dir: Path) -> list[LedgerStep]:
    return [entry for entry in read_ledger(run_dir) if isinstance(entry, LedgerStep)]


def assert_same_end(found: Path, expected: Path, first_step: int = 0) -> None:
    assert consumed(found) == consumed(expected)[first_step:]
    # float32 rounding, carried through six steps
    torch.testing.assert_close(losses(found), losses(expected)[first_step:], atol=1e-4, rtol=1e-4)
    for nemo in ("run", "run-EMA"):
        ours, theirs = weights(found, nemo), weights(expected, nemo)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # keys' biases have rounding for gradients, which Adam turns into whole steps of 1e-3
            tolerance = 1e-2 if name.endswith("k_proj.bias") else 2e-4
            torch.testing.assert_close(ours[name], value, atol=tolerance, rtol=1e-3, msg=name)


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory, colours: list[str]) -> list[str]:  # noqa: F811
    """Overrides under which every run starts from the same weights."""
    four_layers = [*colours, "model.num_layers=4"]
    start = train(tmp_path_factory.mktemp("start"), four_layers, steps=1)
    restore = f"model.restore_from_path={start}/checkpoints/run.nemo"
    return [
        *four_layers,
        restore,
        "model.optim.lr=1e-3",
        "exp_manager.checkpoint_callback_params.save_top_k=3",
        *EMA,
    ]


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that have three prompts answered twice in six steps."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.json"
    rows = [{"prompt": "<image>\nwhat colour is this?", "image": f"{number}.png"} for number in range(2)]
    file.write_text(json.dumps([*rows, {"prompt": "is it?"}]))
    settings = [f"prompt_file={file}", "every_n_steps=4", "tokens_to_generate=6"]
    return [f"trainer.samples.{word}" for word in settings]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, begin: list[str], asking: list[str]) -> Path:
    """Six steps on one process."""
    return train(tmp_path_factory.mktemp("alone"), [*begin, *asking], steps=6)


@pytest.fixture(scope="module")
def tensor(tmp_path_factory: pytest.TempPathFactory, begin: list[str], asking: list[str]) -> Path:
    """Six steps of two tensor-parallel ranks, which train on while they save."""
    saving = "exp_manager.checkpoint_callback_params.async_save=true"
    return train(tmp_path_factory.mktemp("tensor"), [*begin, *asking, *TENSOR, saving], steps=6)


def test_a_run_ends_the_same_under_tensor_parallel_and_continues_in_an_interleaved_pipeline(
    tmp_path: Path, begin: list[str], alone: Path, tensor: Path
) -> None:
    assert_same_end(tensor, alone)
    pipeline = train(handed_over(tensor, tmp_path / "pipeline"), [*begin, *PIPELINE], steps=6)
    assert_same_end(pipeline, alone, first_step=4)


def test_a_distributed_optimizer_under_context_parallel_continues_as_a_plain_one(
    tmp_path: Path, begin: list[str], alone: Path
) -> None:
    context = train(tmp_path / "context", [*begin, *CONTEXT, *SHARDED], steps=6)
    assert_same_end(context, alone)
    single = train(handed_over(context, tmp_path / "single"), begin, steps=6)
    assert_same_end(single, alone, first_step=4)


def test_a_plain_optimizer_continues_as_a_distributed_one(
    tmp_path: Path, begin: list[str], alone: Path
) -> None:
    sharded = train(
        handed_over(alone, tmp_path / "sharded"), [*begin, *SHARDED, "trainer.devices=2"], steps=6
    )
    assert_same_end(sharded, alone, first_step=4)


def test_fsdp_ends_the_same_and_continues_every_other_layout_and_they_it(
    tmp_path: Path, begin: list[str], asking: list[str], alone: Path, tensor: Path
) -> None:
    shares = train(tmp_path / "shares", [*begin, *asking, *FSDP], steps=6)
    assert_same_end(shares, alone)
    assert samples(shares) == samples(tensor) == samples(alone)
    assert [len(text.splitlines()) for text in samples(alone)] == [3, 3]
    assert_same_end(train(handed_over(shares, tmp_path / "to_tensor"), [*begin, *TENSOR], steps=6), alone, 4)
    assert_same_end(train(handed_over(shares, tmp_path / "to_single"), begin, steps=6), alone, 4)
    options = ["model.fsdp_sharding_strategy=grad", "model.fsdp_sharded_checkpoint=false"]
    joined = train(handed_over(tensor, tmp_path / "from_tensor"), [*begin, *FSDP, *options], steps=6)
    assert_same_end(joined, alone, first_step=4)


def test_a_pipeline_whose_first_stage_trains_nothing_continues_where_it_is(
    tmp_path: Path, begin: list[str]
) -> None:
    frozen = ["llm.freeze=true", "vision_encoder.freeze=true", "mm_mlp_adapter_freeze=true"]
    lora = ["peft_scheme=lora", "lora_tuning.layer_selection=[4]"]
    last_layer = [
        *begin,
        *(f"model.mm_cfg.{word}" for word in frozen),
        *(f"model.peft.{word}" for word in lora),
    ]
    pipeline = ["trainer.devices=2", "model.pipeline_model_parallel_size=2"]
    two_stages = train(tmp_path / "two_stages", [*last_layer, *pipeline], steps=6)
    single = train(handed_over(two_stages, tmp_path / "single"), last_layer, steps=6)
    assert_same_end(single, two_stages, first_step=4)
