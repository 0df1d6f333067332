"""Workers: the same steps as without them, in the same order, at any number of ranks."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from neva.data.batch import Batch
from neva.data.loader import build_loader, killed_worker, train_loader
from tests.conftest import image_record, write_records
from tests.data import tokenizers
from tests.data.test_dataset import VISION, model_cfg, write_dataset

RECORDS, STEPS = 14, 7  # 3 steps an epoch


def steps(
    folder: Path, rank: int = 0, size: int = 1, consumed: int = 0, model: Any = None, **data: Any
) -> list[list[Batch]]:
    cfg = OmegaConf.merge(model_cfg(folder, **data), model or {})
    tokenizer = tokenizers.llama_like(folder / "tokenizer")
    num_steps = STEPS - consumed // 4
    return list(
        train_loader(cfg, VISION, tokenizer, rank, size, num_steps, seed=3, consumed_samples=consumed)
    )  # type: ignore[arg-type]


def assert_equal(found: list[list[Batch]], expected: list[list[Batch]]) -> None:
    assert [len(step) for step in found] == [len(step) for step in expected]
    for left, right in zip(sum(found, []), sum(expected, []), strict=True):
        assert left.record_ids == right.record_ids
        for name in ("input_ids", "labels", "pixel_values"):
            assert torch.equal(getattr(left, name), getattr(right, name))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_what_the_main_process_gives_and_leave_its_random_numbers_alone(
    workers: int, tmp_path: Path
) -> None:
    write_dataset(tmp_path, RECORDS)
    expected = steps(tmp_path)
    state = torch.get_rng_state()
    assert_equal(steps(tmp_path, num_workers=workers), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(expected) == STEPS
    assert all(len(step) == 2 and step[0].input_ids.shape[0] == 2 for step in expected)


def test_a_resumed_loader_continues_where_the_other_stopped(tmp_path: Path) -> None:
    write_dataset(tmp_path, RECORDS)
    expected = steps(tmp_path)
    for cut in (1, 3, 5):
        assert_equal(steps(tmp_path, consumed=4 * cut), expected[cut:])


def test_two_ranks_share_what_one_rank_consumes(tmp_path: Path) -> None:
    write_dataset(tmp_path, RECORDS)

    def ids(batches: list[list[Batch]]) -> list[list[str]]:
        return [sorted(name for batch in step for name in batch.record_ids) for step in batches]

    one, first, second = ids(steps(tmp_path)), ids(steps(tmp_path, 0, 2)), ids(steps(tmp_path, 1, 2))
    assert [sorted(left + right) for left, right in zip(first, second, strict=True)] == one


def test_a_pipeline_gets_one_length_a_step(tmp_path: Path) -> None:
    write_dataset(tmp_path, RECORDS)
    ragged = steps(tmp_path, pad_to_multiple_of=1)
    assert any(step[0].input_ids.shape != step[1].input_ids.shape for step in ragged)
    for step in steps(tmp_path, model={"pipeline_model_parallel_size": 2}, pad_to_multiple_of=1):
        assert step[0].input_ids.shape == step[1].input_ids.shape


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_skip_is_counted_in_the_main_process(workers: int, tmp_path: Path) -> None:
    records = write_dataset(tmp_path, RECORDS)
    records[3] = image_record(99, "<image>", "b")
    records[8] = {"id": "broken"}
    write_records(tmp_path / "data.json", records)
    cfg = model_cfg(tmp_path, on_error="skip", num_workers=workers, dataloader_type="single")
    loader = train_loader(cfg, VISION, tokenizers.llama_like(tmp_path / "tokenizer"), 0, 1, 3, seed=3)
    names = [name for step in loader for batch in step for name in batch.record_ids]
    assert sorted(names[:4]) == ["id-0", "id-1", "id-2", "id-4"]
    assert loader.dataset.samples.skipped_count == 2  # type: ignore[attr-defined]


def test_an_error_in_a_worker_names_the_record(tmp_path: Path) -> None:
    records = write_dataset(tmp_path, RECORDS)
    records[5] = image_record(99, "<image>", "b")
    write_records(tmp_path / "data.json", records)
    with pytest.raises(ValueError, match=r"record 5 \(id 'id-99'\): image file .*99\.png does not exist"):
        steps(tmp_path, num_workers=1, dataloader_type="sequential")


class _Larger:
    """Gives more than the memory that a worker shares takes."""

    def __getitem__(self, indices: list[int]) -> torch.Tensor:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        return torch.zeros(1 << 20)


def test_a_worker_that_cannot_hand_over_a_step_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    loader: Any = build_loader(_Larger(), [[0]], num_workers=1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError) as raised:
        next(iter(loader))
    assert killed_worker(raised.value) is not None
    assert capfd.readouterr().err.startswith("neva: a data worker cannot hand over a step (unable to ")
