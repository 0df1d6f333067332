"""A run of compiled layers: the numbers of one that is not, and those of its own when it is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neva.errors import ConfigError
from neva.training.callbacks import read_metrics
from tests.training.test_run import Kill, kill_after, run

NAMES = ("loss", "grad_norm")

# torch does what it warns of while it compiles
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_compiled_run_learns_the_same_and_resumes_exactly(tmp_path: Path, colours: list[str]) -> None:
    """Rows of several lengths, with padding, with and without an image."""
    keys = [*colours, "exp_manager.checkpoint_callback_params.every_n_train_steps=2", "trainer.max_steps=5"]
    expected = read_metrics(run(tmp_path / "eager", keys, steps=5))
    keys.append("model.torch_compile=true")
    compiled = read_metrics(run(tmp_path / "compiled", keys, steps=5))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for found, wanted in zip(compiled, expected, strict=True):
        # float32: sums in another order, and what five steps of Adam make of them
        assert [found[name] for name in NAMES] == pytest.approx([wanted[name] for name in NAMES], rel=1e-5)
    with pytest.raises(Kill):
        kill_after(3, tmp_path / "killed", keys)
    torch._dynamo.reset()  # as a new process, whose first batch is another one
    resumed = read_metrics(run(tmp_path / "killed", keys, steps=5))
    assert [[row[name] for name in NAMES] for row in resumed] == [
        [row[name] for name in NAMES] for row in compiled
    ]


def test_what_is_not_compiled_is_refused(tmp_path: Path, colours: list[str]) -> None:
    keys = [*colours, "model.torch_compile=true", "model.num_moe_experts=4", "model.moe_router_topk=2"]
    with pytest.raises(ConfigError, match="torch_compile=true with experts"):
        run(tmp_path, keys, steps=1)


def test_a_machine_without_a_compiler_is_told_of(tmp_path: Path, colours: list[str]) -> None:
    import torch._inductor.config as inductor

    none = {"cpp.cxx": (str(tmp_path / "none"),)}
    with inductor.patch(none), pytest.raises(ConfigError, match=r"found no C\+\+ compiler; install g\+\+"):
        run(tmp_path, [*colours, "model.torch_compile=true"], steps=1)
