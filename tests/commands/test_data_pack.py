"""`neva data pack`: a plan that the run then finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from neva.cli import main
from neva.data import token_lengths
from tests.training.conftest import colours  # noqa: F401


def test_packs_are_made_once_and_reported(
    colours: list[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = ["--config-name", "quickstart_finetune", *colours, "exp_manager.name=x"]
    assert main(["data", "pack", "--workers", "0", *recipe]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    data = next(key.partition("=")[2] for key in colours if key.startswith("model.data.data_path"))
    assert first.startswith(f"{data}: 10 samples in ") and "packs of 128 positions" in first
    assert [line.split(":")[0] for line in others] == [
        f"with model.data.packed_length={128 * times}" for times in (2, 4, 8)
    ]
    assert {"token-lengths", "packs"} <= {
        path.name.rpartition("-")[0].rpartition("-")[0] for path in Path(f"{data}.neva").iterdir()
    }
    monkeypatch.setattr(token_lengths, "_measure", None)  # a second measurement would fail
    assert (
        main(["train", "--dry-run", *recipe, "model.data.packed_sequence=true", "model.global_batch_size=2"])
        == 0
    )
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("packs")]
    assert "10 samples in" in line
