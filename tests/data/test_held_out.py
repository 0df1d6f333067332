"""What is held out to validate: chosen by content, never trained on, read in the same steps by any number of ranks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from neva.constants import IGNORE_INDEX
from neva.data.build import build_dataset
from neva.data.dataset import NO_RECORD
from neva.data.held_out import content_hash, training_records, validation_records
from neva.data.sources.source import Record
from neva.data.validation import NO_SAMPLE, build_validation_dataset, validation_loader, validation_steps
from neva.errors import ConfigError, DataError
from neva.formats.stored_file import StoredFile
from neva.templates.template import Turn
from tests.conftest import conversation, write_records
from tests.data import tokenizers
from tests.data.test_dataset import VISION, model_cfg


def section(path: Path, **keys: object) -> DictConfig:
    plain = {
        "data_path": str(path), "image_folder": None, "max_media_mb": 1, "datasets_exclude": [], "validation": None,
        "validation_split": 0.0,
    }  # fmt: skip
    return OmegaConf.create({**plain, **keys})


def text_records(count: int) -> list[dict[str, object]]:
    return [{"id": f"{n}", "conversations": conversation(f"what is {n}", f"it is {n}")} for n in range(count)]


def ids(records: object) -> list[str]:
    return [records[index].id for index in range(len(records))]  # type: ignore[index, arg-type]


def test_a_share_is_split_off_by_content_and_neither_part_has_a_record_of_the_other(tmp_path: Path) -> None:
    records = text_records(400)
    path = write_records(tmp_path / "data.json", [*records, *records[:50]])  # 50 come twice
    cfg = section(path, validation_split=0.25)
    trained, held_out = ids(training_records(cfg)), ids(validation_records(cfg))
    assert sorted(trained + held_out) == sorted(ids(training_records(section(path))))
    assert not set(trained) & set(held_out), "both of a pair lie on one side"
    assert 75 < len(set(held_out)) < 125, "binomial: 100 ± 3 sigma of 400 at 0.25"
    # in another order, with more records: each stays on its side
    again = write_records(tmp_path / "more.json", [*text_records(600)[::-1]])
    more = section(again, validation_split=0.25)
    assert set(held_out) == {name for name in ids(validation_records(more)) if int(name) < 400}
    assert set(held_out) < set(ids(validation_records(section(again, validation_split=0.5))))


def test_a_record_keeps_its_side_where_its_files_lie_elsewhere() -> None:
    turns = [Turn("human", "<image> what?"), Turn("gpt", "red")]
    places = [["0.png"], [Path("/a/0.png")], [StoredFile("/b/shard.tar/0.png", lambda: b"", 0)]]
    (known,) = {
        content_hash(Record(str(number), turns, images, None)) for number, images in enumerate(places)
    }
    assert known != content_hash(Record("0", turns, ["1.png"], None))


def test_places_in_messages_are_those_of_the_file(tmp_path: Path) -> None:
    path = write_records(tmp_path / "data.jsonl", text_records(40))
    for records in (
        training_records(section(path, validation_split=0.5)),
        validation_records(section(path, validation_split=0.5)),
    ):
        assert records is not None and len(records) > 5
        for index in range(len(records)):
            assert records[index].place == f"line {int(records[index].id) + 1}"


def test_a_share_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    path = write_records(tmp_path / "data.json", text_records(5))
    with pytest.raises(DataError, match="validation_split=1e-09 holds out 0 of the 5 records of"):
        training_records(section(path, validation_split=1e-9))
    with pytest.raises(DataError, match=r"model\.data\.validation: no file at "):
        validation_records(section(path, validation=str(tmp_path / "absent.json")))


@pytest.mark.parametrize(
    ("limit", "drop_last", "expected"),
    [
        (None, False, [[0, 1, 2, 3], [4, 5, 6, NO_SAMPLE]]),
        (None, True, [[0, 1, 2, 3]]),
        (1, False, [[0, 1, 2, 3]]),
        (5, False, [[0, 1, 2, 3], [4, 5, 6, NO_SAMPLE]]),
        (0.5, False, [[0, 1, 2, 3]]),
        (0.01, False, [[0, 1, 2, 3]]),
        (1.0, False, [[0, 1, 2, 3], [4, 5, 6, NO_SAMPLE]]),
    ],
)
def test_steps_are_global_batches_in_the_order_of_the_file(
    limit: float | None, drop_last: bool, expected: list[list[int]]
) -> None:
    assert validation_steps(7, 4, limit, drop_last) == expected


def test_nothing_left_to_validate_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="validation_drop_last=true leaves none of 3 records"):
        validation_steps(3, 4, None, drop_last=True)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_number_of_ranks_reads_every_good_sample_once_in_equally_many_micro_batches(
    tmp_path: Path, size: int
) -> None:
    records = text_records(10)
    records[3]["conversations"] = "none"
    records[7]["image"] = "gone.png"
    write_records(tmp_path / "held_out.json", records)
    cfg = model_cfg(
        tmp_path, validation=str(tmp_path / "held_out.json"), on_error="skip", max_skipped=0.5, num_workers=0
    )
    cfg.global_batch_size, cfg.micro_batch_size, cfg.pipeline_model_parallel_size = 8, 2, 1
    tokenizer = tokenizers.llama_like(tmp_path / "tokenizer")
    alone = build_validation_dataset(cfg, VISION, tokenizer)
    assert alone is not None
    expected = {index: alone.read(index) for index in range(10) if index not in (3, 7)}
    seen: Counter[str] = Counter()
    labels = 0
    for rank in range(size):
        samples = build_validation_dataset(cfg, VISION, tokenizer)
        assert samples is not None
        steps = validation_steps(10, 8, None, drop_last=False)
        batches = list(validation_loader(cfg, samples, steps, tokenizer.pad_token_id, rank, size))
        assert [len(step) for step in batches] == [8 // size // 2] * 2
        for micro in (micro for step in batches for micro in step):
            assert len(micro.input_ids) == 2
            seen.update(micro.record_ids)
            labels += int((micro.labels != IGNORE_INDEX).sum())
    assert labels == sum(int((sample.labels[1:] != IGNORE_INDEX).sum()) for sample in expected.values())
    assert seen.pop(NO_RECORD) == 16 - 8
    assert seen == Counter(sample.record_id for sample in expected.values())


def test_images_of_the_held_out_file_have_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    cfg = model_cfg(tmp_path, validation_image_folder=str(tmp_path / "there"))
    cfg.data.validation = cfg.data.data_path
    write_records(tmp_path / "data.json", text_records(2))
    tokenizer = tokenizers.llama_like(tmp_path / "tokenizer")
    held_out = build_validation_dataset(cfg, VISION, tokenizer)
    assert held_out is not None and held_out.files.folder.path == tmp_path / "there"
    assert torch.equal(held_out[0].input_ids, build_dataset(cfg, VISION, tokenizer)[0].input_ids)
    cfg.data.validation_image_folder = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"model\.data\.validation_image_folder: no folder at "):
        build_validation_dataset(cfg, VISION, tokenizer)


def test_a_record_that_is_no_json_trains_and_is_judged_there(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*(json.dumps(record) for record in text_records(30)), "{broken"]) + "\n")
    cfg = section(path, validation_split=0.5)
    held_out = validation_records(cfg)
    assert held_out is not None
    assert len(held_out) + len(training_records(cfg)) == 31
    with pytest.raises(ValueError, match="not valid JSON"):
        _ = training_records(cfg)[len(training_records(cfg)) - 1]
