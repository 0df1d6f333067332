"""A run whose projector has no tensors: it trains, saves, resumes from its `.nemo` and answers."""

from pathlib import Path

import pytest
import torch

from neva.config.load import load
from neva.distributed import groups
from neva.formats.nemo import open_nemo
from neva.inference.load import load_assistant
from neva.training.run import train

pytestmark = pytest.mark.usefixtures("single_process")


def run(folder: Path, colours: list[str], name: str, *more: str) -> Path:
    words = [
        *colours,
        "model.mm_cfg.mm_mlp_adapter_type=identity",
        "model.mm_cfg.vision_encoder.hidden_size=32",
        "trainer.max_steps=3",
        f"exp_manager.exp_dir={folder}",
        f"exp_manager.name={name}",
        *more,
    ]
    made = train(load("quickstart_finetune", words))
    return next((made / "checkpoints").glob("*.nemo"))


def test_it_trains_is_saved_and_is_loaded(tmp_path: Path, colours: list[str]) -> None:
    first = run(tmp_path, colours, "first")
    names = set(open_nemo(first).weights)
    assert not any(name.startswith("projector") for name in names)
    second = run(
        tmp_path,
        colours,
        "second",
        f"model.restore_from_path={first}",
        "model.mm_cfg.mm_mlp_adapter_freeze=true",
        "model.optim.lr=1e-30",  # less than a bit of any weight that is not zero
    )
    for name in names:
        pair = open_nemo(second).weights[name], open_nemo(first).weights[name]
        torch.testing.assert_close(*pair, rtol=0, atol=1e-20)
    groups.init_process_group(rank=0, world_size=1)  # training has left its own
    groups.init_model_parallel(groups.ParallelSizes(), seed=1)
    device = torch.device("cpu")
    assistant = load_assistant(str(second), device, torch.float32, None, None, None)
    checkpoint = load_assistant(str(_last(second)), device, torch.float32, None, None, None)
    for (name, one), (_, other) in zip(
        assistant.model.named_parameters(), checkpoint.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def _last(nemo: Path) -> Path:
    return next(nemo.parent.glob("*-last"))
