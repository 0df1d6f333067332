"""A step that is not finite on one rank is passed over by all of them, however the model is spread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neva.data.ledger import LEARNT, NOT_FINITE
from neva.training.callbacks import read_metrics
from neva.training.not_finite import FOLDER
from tests.distributed.kill_drill import beginning, consumed
from tests.distributed.rank_process import Ranks
from tests.training.conftest import colours  # noqa: F401

HARMED = 3
FIXED = [
    "model.micro_batch_size=1",
    "model.data.pad_to_multiple_of=4",
    "trainer.max_steps=5",
    "exp_manager.name=run",
    "exp_manager.create_checkpoint_callback=false",
    "exp_manager.create_tensorboard_logger=false",
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, colours: list[str]) -> list[str]:  # noqa: F811
    return [*colours, *FIXED, beginning(tmp_path_factory.mktemp("beginning"), colours)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> list[float]:
    """Losses of a run that passes over the step because it is told to."""
    folder = tmp_path_factory.mktemp("expected")
    words = [*settings, f"exp_manager.exp_dir={folder}", f"trainer.skip_steps=[[{HARMED},{HARMED}]]"]
    Ranks(words, 1, folder / "log").finish()
    return [row["loss"] for row in read_metrics(folder / "run")]


@pytest.mark.parametrize(
    ("layout", "rank", "what"),
    [
        ([], 1, "pixels"),
        (["model.optim.name=distributed_fused_adam"], 1, "gradient"),
        (["model.fsdp=true", "trainer.gradient_clip_val=0"], 1, "gradient"),
        (["model.pipeline_model_parallel_size=2"], 0, "gradient"),
        (["model.tensor_model_parallel_size=2", "trainer.gradient_clip_val=0"], 0, "gradient"),
    ],
    ids=["data", "distributed optimizer", "fsdp", "pipeline", "tensor"],
)
def test_all_ranks_pass_over_it_alike(
    layout: list[str], rank: int, what: str, tmp_path: Path, settings: list[str], expected: list[float]
) -> None:
    words = [*settings, *layout, f"exp_manager.exp_dir={tmp_path}", "trainer.on_nan=skip"]
    Ranks(words, 2, tmp_path / "log", [(HARMED, rank, what)]).finish()
    rows = read_metrics(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [0, 0, 1, 0, 0]
    assert [step.treatment for step in consumed(tmp_path / "run")] == [
        NOT_FINITE if step == HARMED else LEARNT for step in range(1, 6)
    ]
    assert all(row["grad_norm"] > 0 for row in rows if row["step"] != HARMED)  # with clipping off, too
    if "trainer.gradient_clip_val=0" not in layout:
        others = [row["loss"] for row in rows if row["step"] != HARMED]
        # float32 rounding, carried through five steps
        torch.testing.assert_close(others, [*expected[:2], *expected[3:]], atol=1e-4, rtol=1e-4)
    shares = sorted(
        path.name for path in (tmp_path / "run" / FOLDER / f"step-{HARMED:06d}").glob("*.safetensors")
    )
    split = any("parallel_size" in word for word in layout)
    assert shares == (
        ["share-0000-of-0001.safetensors"]
        if split
        else [f"share-000{share}-of-0002.safetensors" for share in range(2)]
    )
