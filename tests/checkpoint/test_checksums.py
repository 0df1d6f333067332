"""A checkpoint with any byte changed, any file cut or gone, is named and never loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.dist_checkpointing import ShardedTensor

from neva.checkpoint import store
from neva.checkpoint.checksums import CHECKSUMS
from neva.errors import CheckpointError


def state(value: float) -> dict[str, Any]:
    return {"model": {"w": ShardedTensor.from_rank_offsets("w", torch.full((8, 4), value))}}


@pytest.fixture
def saved(tmp_path: Path, single_process: None) -> Path:
    store.save(tmp_path / "step=1-last", state(3.0), {"epoch": 2})
    return tmp_path / "step=1-last"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)


def test_what_was_saved_is_loaded(saved: Path) -> None:
    loaded = store.load(saved, state(0.0))
    assert torch.equal(loaded["model"]["w"], torch.full((8, 4), 3.0)) and loaded["lightning"]["epoch"] == 2


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_and_any_cut_is_named(saved: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files(saved)))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                content[:position],
                content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :],
            ]
        )
    )
    path.write_bytes(damaged)
    try:
        with pytest.raises(
            CheckpointError, match=f"last is damaged: {path.name} has .* move it away and continue"
        ):
            store.load(saved, state(0.0))
    finally:
        path.write_bytes(content)


def test_a_missing_file_is_named(saved: Path) -> None:
    files(saved)[1].unlink()
    files(saved)[0].unlink()
    with pytest.raises(CheckpointError, match=r"is damaged: \S+ is missing, and 1 more; copy it again"):
        store.load(saved, state(0.0))


def test_a_checkpoint_of_before_is_loaded_unseen(saved: Path) -> None:
    (saved / CHECKSUMS).unlink()
    shutil.copytree(saved, saved.with_name("copy"))
    assert store.load(saved.with_name("copy"), state(0.0))["lightning"]["epoch"] == 2
