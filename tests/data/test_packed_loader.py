"""Packed batches of real records: the same samples, each once an epoch, whatever the ranks, workers and breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from neva.data import token_lengths
from neva.data.batch import Batch
from neva.data.loader import packs_per_epoch, train_loader
from neva.data.position import Position, saved_position
from neva.errors import DataError
from tests.conftest import conversation, image_record, write_records
from tests.data import tokenizers
from tests.data.test_dataset import VISION, dataset, model_cfg, write_dataset

RECORDS = 23
OF_MODEL = ("drop_last", "encoder_seq_length", "global_batch_size")


def loader(
    folder: Path, rank: int = 0, size: int = 1, steps: int = 1, saved: Any = None, **changes: Any
) -> Any:
    """A loader of packs, two in a global batch."""
    of_model = {name: changes.pop(name) for name in OF_MODEL if name in changes}
    cfg = OmegaConf.merge(
        model_cfg(folder, packed_sequence=True, packed_length=300, **changes),
        {"micro_batch_size": 1, "global_batch_size": 2, **of_model},
    )
    tokenizer = tokenizers.llama_like(folder / "tokenizer")
    return train_loader(cfg, VISION, tokenizer, rank, size, steps, seed=3, saved=saved)  # type: ignore[arg-type]


def packs(folder: Path) -> int:
    cfg = OmegaConf.merge(model_cfg(folder, packed_sequence=True, packed_length=300), {"seed": 3})
    return packs_per_epoch(cfg, VISION, tokenizers.llama_like(folder / "tokenizer"))  # type: ignore[arg-type]


def names(steps: list[list[Batch]]) -> list[str]:
    return [name for step in steps for batch in step for name in batch.record_ids]


def test_every_record_comes_once_an_epoch_as_the_sample_that_it_is_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path, RECORDS)
    alone = {sample.record_id: sample for sample in (dataset(tmp_path)[index] for index in range(RECORDS))}
    found = list(loader(tmp_path, steps=packs(tmp_path), global_batch_size=1))
    assert sorted(names(found)) == sorted(alone)
    for batch in (batch for step in found for batch in step):
        assert batch.input_ids.shape[1] <= 304 and len(batch.sample_lengths) == 1
        first, images = 0, 0
        for name, length in zip(batch.record_ids, batch.sample_lengths[0], strict=True):
            sample = alone[name]
            assert torch.equal(batch.input_ids[0, first : first + length], sample.input_ids)
            assert torch.equal(batch.labels[0, first : first + length - 1], sample.labels[1:])
            assert batch.labels[0, first + length - 1] == -100
            pixels = batch.pixel_values[images : images + len(sample.pixel_values)]
            assert torch.equal(pixels, sample.pixel_values)
            first, images = first + length, images + len(sample.pixel_values)
        assert images == len(batch.pixel_values)


def test_a_later_epoch_has_the_same_packs_in_another_order(tmp_path: Path) -> None:
    write_dataset(tmp_path, RECORDS)
    each = packs(tmp_path)
    assert each % 2  # so that a global batch lies in both epochs
    found = list(loader(tmp_path, steps=each, drop_last=False))
    rows = [tuple(batch.record_ids) for step in found for batch in step]
    middle = each // 2  # its two packs, one of each epoch, were sorted by length
    first, second = set(rows[: 2 * middle]), set(rows[2 * middle + 2 :])
    assert len(first) == len(second) == each - 1
    assert len(first | second) <= each and first | set(rows[2 * middle : 2 * middle + 2]) == second | set(
        rows[2 * middle : 2 * middle + 2]
    )
    assert rows[: 2 * middle] != rows[2 * middle + 2 :]


def test_ranks_workers_and_a_resumed_run_give_the_same_packs(tmp_path: Path) -> None:
    write_dataset(tmp_path, RECORDS)
    whole = list(loader(tmp_path, steps=3))
    shards = [list(loader(tmp_path, rank=rank, size=2, steps=3, num_workers=1)) for rank in range(2)]
    for step in range(3):
        packs = sorted(batch.record_ids for batch in whole[step])
        assert sorted(shard[step][0].record_ids for shard in shards) == packs
    first = loader(tmp_path, steps=1)
    saved = saved_position(first.sampler.behind(first.sampler.start), first.identity)
    assert names(list(loader(tmp_path, steps=2, saved=saved))) == names(whole[1:])
    with pytest.raises(DataError, match=r"packing was 300 positions, encoding \w+ and is 300 positions"):
        loader(tmp_path, saved=saved, conv_template="v1_neva")
    unpacked = dict(saved, data={k: v for k, v in saved["data"].items() if k != "packing"})
    with pytest.raises(DataError, match="packing was None and is 300 positions"):
        loader(tmp_path, saved=unpacked)
    assert loader(tmp_path, saved=unpacked, on_change="new_epoch").sampler.start == Position(1)


def test_lengths_are_measured_once_and_again_when_the_file_or_the_encoding_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path, RECORDS)
    measured = []
    measure = token_lengths._measure
    monkeypatch.setattr(
        token_lengths, "_measure", lambda *arguments: measured.append(1) or measure(*arguments)
    )
    for count, changes in ((1, {}), (1, {"dataloader_type": "sequential"}), (2, {"system": "Be brief."})):
        loader(tmp_path, **changes)
        assert len(measured) == count
    write_dataset(tmp_path, RECORDS + 1)
    loader(tmp_path)
    assert len(measured) == 3


def test_a_record_without_a_sample_is_left_out_of_its_pack(tmp_path: Path) -> None:
    records = write_dataset(tmp_path, RECORDS)
    records[4] = {"id": "broken"}
    records[6] = image_record(99, "<image>", "b")  # its file is missing, which shows when it is read
    write_records(tmp_path / "data.json", records)
    with pytest.raises(DataError, match=r"data\.json, record 4"):
        loader(tmp_path)
    found = loader(tmp_path, on_error="skip", steps=9, dataloader_type="sequential", drop_last=False)
    seen = names(list(found))
    assert set(seen) == {record["id"] for record in records} - {"broken", "id-99"}
    assert found.dataset.samples.skipped_count == 2
    with pytest.raises(DataError, match="2 of 23 records had to be skipped"):
        list(loader(tmp_path, on_error="skip", max_skipped=0.05, steps=9))


def test_a_record_without_a_label_fails_or_is_dropped_by_key(tmp_path: Path) -> None:
    records = write_dataset(tmp_path, RECORDS)
    records[5] = {"id": "long", "conversations": conversation("Is it? " * 90, "Yes")}
    write_records(tmp_path / "data.json", records)
    kept = {"encoder_seq_length": 220, "dataloader_type": "sequential"}
    with pytest.raises(DataError, match=r"'long'\): no token carries loss within encoder_seq_length=220"):
        loader(tmp_path, **kept)
    found = loader(tmp_path, no_label="drop", steps=9, drop_last=False, **kept)
    assert set(names(list(found))) == {record["id"] for record in records} - {"long"}
    assert found.dataset.samples.skipped_count == 1
