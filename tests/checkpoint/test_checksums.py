"""A checkpoint with any byte changed, any file cut or gone, is named and never loaded."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.dist_checkpointing import ShardedTensor

from neva.checkpoint import store
from neva.checkpoint.checksums import CHECKSUMS, damage
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


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_the_newest_whole_one_before_a_changed_one_is_loaded_and_that_is_said(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = [saved.with_name(f"step={step}") for step in (3, 2, 1)]
    for number, folder in enumerate(earlier):
        store.save(folder, state(float(number)), {"epoch": number})
    (shard, *_) = sorted(saved.glob("*.distcp"))
    flip(shard)
    flip(earlier[0] / "common.pt")
    loaded = store.load(saved, state(0.0), earlier)
    assert torch.equal(loaded["model"]["w"], torch.full((8, 4), 1.0)) and loaded["lightning"]["epoch"] == 1
    assert [record.getMessage() for record in caplog.records if record.name.startswith("neva")] == [
        f"{saved} is damaged ({shard.name} has another content than was written) and passed over; the run goes on from "
        f"{earlier[1]}"
    ]
    for folder in earlier[1:]:
        flip(folder / "common.pt")
    with pytest.raises(
        CheckpointError, match=rf"last is damaged: {shard.name} has another content .*; copy it"
    ):
        store.load(saved, state(0.0), earlier)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_list_of_checksums_is_a_damaged_checkpoint_or_none(
    saved: Path, data: st.DataObject
) -> None:
    path = saved / CHECKSUMS
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.binary(min_size=0, max_size=1))
    path.write_bytes(content[:position] + byte + (content[position + 1 :] if byte else b""))
    problem = damage(saved)
    assert problem is None or "\n" not in problem
    assert (problem is None) == (json.loads(content) == load_or_none(path))
    path.write_bytes(content)


def load_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def test_a_folder_that_is_gone_is_no_checkpoint(saved: Path) -> None:
    shutil.rmtree(saved)
    assert damage(saved) == "it has no metadata.json"
    with pytest.raises(CheckpointError, match=r"last is damaged: it has no metadata\.json; copy it again"):
        store.load(saved, state(0.0), [saved.with_name("step=0")])


def test_a_full_disk_is_named_with_the_bytes_that_are_needed(tmp_path: Path, single_process: None) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")
    try:
        store.save(small / "step=1-last", state(3.0), {})
        big = {"model": {"w": ShardedTensor.from_rank_offsets("w", torch.ones(2**19))}}
        with pytest.raises(CheckpointError) as raised:
            store.save(small / "step=2-last", big, {})
        assert str(raised.value).startswith(
            f"the checkpoint {small}/step=2-last needs 2,097,152 bytes, its disk has "
        )
        assert "free (it was not begun): free some, or choose another exp_manager.exp_dir" in str(
            raised.value
        )
        assert torch.equal(
            store.load(small / "step=1-last", state(0.0))["model"]["w"], state(3.0)["model"]["w"].data
        )
        assert [path.name for path in small.iterdir()] == ["step=1-last"]
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize(("elements", "limit_bytes"), [(2**19, 2**20), (2**10, 2**10)])
def test_a_disk_that_takes_no_more_while_a_checkpoint_is_written_is_named(
    tmp_path: Path, single_process: None, elements: int, limit_bytes: int
) -> None:
    big = {"model": {"w": ShardedTensor.from_rank_offsets("w", torch.ones(elements))}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(CheckpointError) as raised:
            store.save(tmp_path / "step=2-last", big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = rf"the checkpoint {tmp_path}/step=2-last needs {elements * 4:,} bytes, its disk has [\d,]+ free"
    assert re.fullmatch(rf"{found} \(writing stopped: .+\): free some, or .*", str(raised.value))
    assert list(tmp_path.iterdir()) == []
