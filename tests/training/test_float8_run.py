"""A run that multiplies in 8 bits: it learns, is nearly the one that does not, and is resumed exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from neva.errors import ConfigError
from neva.training.callbacks import read_metrics
from tests.training.test_run import Kill, kill_after, run, weights

SIZES = [
    "model.hidden_size=32",
    "model.ffn_hidden_size=48",
    "model.num_attention_heads=2",
    "model.optim.lr=5e-3",
]


def test_a_run_learns_in_8_bits_and_resumes_exactly(tmp_path: Path, colours: list[str]) -> None:
    keys = [*colours, *SIZES, "exp_manager.checkpoint_callback_params.every_n_train_steps=30"]
    exact = read_metrics(run(tmp_path / "exact", keys, steps=60))
    keys.append("model.fp8=true")
    whole = run(tmp_path / "whole", keys, steps=60)
    rows = read_metrics(whole)
    assert (
        rows[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02) and rows[0]["loss"] != exact[0]["loss"]
    )
    assert rows[-1]["loss"] < 0.1 * rows[0]["loss"]
    with pytest.raises(Kill):
        kill_after(40, tmp_path / "killed", [*keys, "trainer.max_steps=60"])
    resumed = run(tmp_path / "killed", keys, steps=60)
    ours, theirs = weights(resumed), weights(whole)
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def test_sizes_that_kernels_do_not_take_are_refused(tmp_path: Path, colours: list[str]) -> None:
    with pytest.raises(
        ConfigError, match="ffn_hidden_size / tensor parallel = 40: kernels take matrices in multiples of 16"
    ):
        run(tmp_path, [*colours, *SIZES, "model.ffn_hidden_size=40", "model.fp8=true"], steps=1)
