"""Samples from files, the errors that name them, and what skipping does."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.build import build_dataset, build_encoder
from neva.data.dataset import ConversationDataset
from neva.data.media.image import load_image
from neva.data.media.processor import build_image_processor, to_pixels
from neva.errors import ConfigError, DataError, SampleError
from neva.families.configs import VisionConfig
from tests.conftest import conversation, image_record, random_image, shared_data, write_records
from tests.data import tokenizers
from tests.data.test_media import vision_cfg

VISION = VisionConfig(
    model_type="clip",
    image_size=16,
    patch_size=8,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    ffn_hidden_size=16,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    select_layer=-2,
    class_token_length=1,
)


def model_cfg(folder: Path, **data: Any) -> DictConfig:
    """A resolved `model` section, so far as the data reads it."""
    return OmegaConf.create(
        {
            "micro_batch_size": 2,
            "global_batch_size": 4,
            "mega_batch_mult": None,
            "drop_last": True,
            "pipeline_model_parallel_size": 1,
            "encoder_seq_length": 256,
            "vocab_size": 512,
            "mm_cfg": {
                "vision_encoder": OmegaConf.to_container(vision_cfg(image_size=16)),
                "mm_mlp_adapter_type": "mlp2x_gelu",
            },
            "data": {
                "data_path": str(folder / "data.json"),
                "image_folder": str(folder),
                "datasets_exclude": [],
                "validation": None,
                "validation_image_folder": None,
                "validation_split": 0.0,
                "validation_drop_last": False,
                "conv_template": "v1",
                "image_aspect_ratio": "pad",
                "sep_image_conv_front": False,
                "dataloader_type": "cyclic",
                "longest_first": True,
                "num_workers": 0,
                "on_error": "fail",
                "max_media_mb": 1024,
                "odd_records": data.get("on_error", "fail"),
                "max_skipped": 1.0,
                "truncation": "cut",
                "max_image_num": None,
                "image_urls": False,
                "media_type": "image",
                "video_folder": None,
                "no_label": "fail",
                "answer_loss_only": True,
                "packed_sequence": False,
                "packed_length": None,
                "on_change": "fail",
                "exif_transpose": False,
                "pad_to_multiple_of": 8,
            }
            | data,
        }
    )


def write_dataset(folder: Path, count: int) -> list[dict[str, Any]]:
    """`count` records: every third without an image, one with two, questions of different length."""
    records = []
    for number in range(count):
        random_image(16 + number, 20, seed=number).save(folder / f"{number}.png")
        question = "<image>\nWhat " + "is " * (number % 5) + "in the picture?"
        records.append(image_record(number, question, "A red circle.", "Yes?", "No " * (number % 4) + "."))
        if number % 3 == 2:
            records[-1] = {"id": f"id-{number}", "conversations": conversation("Is it a circle?", "Yes")}
    records[0]["image"] = ["0.png", "1.png"]
    records[0]["conversations"][2]["value"] = "And in <image>?"
    write_records(folder / "data.json", records)
    return records


def dataset(folder: Path, **data: Any) -> ConversationDataset:
    return build_dataset(model_cfg(folder, **data), VISION, tokenizers.llama_like(folder / "tokenizer"))


def test_a_sample_holds_the_ids_labels_and_pixels_of_its_record(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3)
    samples = dataset(tmp_path)
    sample = samples[0]
    assert sample.record_id == "id-0"
    assert sample.input_ids.dtype == sample.labels.dtype == torch.int64
    assert int((sample.input_ids == IMAGE_TOKEN_ID).sum()) == 2 * VISION.num_tokens == 8
    learnt = sample.labels != IGNORE_INDEX
    assert torch.equal(sample.labels[learnt], sample.input_ids[learnt])
    first_answer = samples.encoder.tokenizer.decode(sample.labels[learnt]).split("</s>")[0]
    assert first_answer == "A red circle."
    assert int((sample.labels == samples.encoder.tokenizer.eos_token_id).sum()) == 2
    processor = build_image_processor(vision_cfg(image_size=16))
    expected = [to_pixels(load_image(tmp_path / name), processor, "pad") for name in ("0.png", "1.png")]
    assert torch.equal(sample.pixel_values, torch.stack(expected))
    assert samples[2].pixel_values.shape == (0, 3, 16, 16)


def test_training_and_inference_see_the_same_ids_and_pixels(tmp_path: Path) -> None:
    records = write_dataset(tmp_path, 2)
    cfg = model_cfg(tmp_path, sep_image_conv_front=True)
    tokenizer = tokenizers.llama_like(tmp_path / "tokenizer")
    sample = build_dataset(cfg, VISION, tokenizer)[1]
    prompt = build_encoder(cfg, tokenizer).prompt(records[1]["conversations"][0]["value"], [4])
    assert sample.input_ids[: len(prompt)].tolist() == prompt
    image = to_pixels(
        load_image(tmp_path / "1.png"),
        build_image_processor(cfg.mm_cfg.vision_encoder),
        cfg.data.image_aspect_ratio,
    )
    assert torch.equal(sample.pixel_values[0], image)


BROKEN: dict[str, Any] = {
    "missing image": image_record(99, "<image>", "b"),
    "broken image": {"id": "x", "image": "broken.png", "conversations": conversation("<image>", "b")},
    "no placeholder": image_record(0, "a", "b"),
    "wrong order": {"id": "x", "conversations": conversation("a", "b")[::-1]},
    "system prompt of parts": {"id": "x", "system": [{"text": "a"}], "conversations": conversation("a", "b")},
    "no answer": {"id": "x", "conversations": conversation("a")},
    "no conversation": {"id": "x"},
    "image cut off": image_record(0, "long " * 300 + "<image>", "b"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_record_that_cannot_be_used_is_named_or_replaced_by_the_next(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = write_dataset(tmp_path, 6)
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:100])
    write_records(tmp_path / "data.json", [*records[:2], BROKEN[case], *records[2:]])
    with pytest.raises(SampleError, match=rf"data\.json, record 2 \(id '{BROKEN[case]['id']}'\): ") as raised:
        dataset(tmp_path)[2]
    if "image" in case and "cut" not in case:
        assert str(tmp_path / BROKEN[case]["image"]) in str(raised.value)
    skipping = dataset(tmp_path, on_error="skip")
    with caplog.at_level(logging.WARNING):
        replaced = [skipping[2] for _ in range(3)]
    assert [sample.record_id for sample in replaced] == ["id-2"] * 3
    assert skipping[3].record_id == "id-2"
    assert skipping.skipped_count == 1
    assert [record.message for record in caplog.records] == [f"skipped: {raised.value}"]


def test_skipping_goes_on_past_several_bad_records_and_past_the_end(tmp_path: Path) -> None:
    records = write_dataset(tmp_path, 3)
    bad = image_record(99, "<image>", "b")
    write_records(tmp_path / "data.json", [bad, *records, bad, bad])
    skipping = dataset(tmp_path, on_error="skip")
    assert skipping[4].record_id == "id-0"
    assert skipping.skipped_count == 3


def test_when_every_record_is_bad_skipping_ends_with_an_error(tmp_path: Path) -> None:
    write_records(tmp_path / "data.json", [image_record(99, "<image>", "b")] * 3)
    with pytest.raises(SampleError, match="none of the 3 records gives a sample"):
        dataset(tmp_path, on_error="skip")[1]


def test_a_long_record_is_shortened_or_dropped_and_counted(tmp_path: Path) -> None:
    records = write_dataset(tmp_path, 4)
    records[1]["conversations"] += conversation("And <image>?", "long " * 300)
    records[1]["image"] = ["1.png", "2.png"]
    write_records(tmp_path / "data.json", records)
    short = dataset(tmp_path, truncation="truncate_turns")
    assert len(short[1].pixel_values) == 1 and short[1].record_id == "id-1"
    assert short.shortened.tolist() == [False, True, False, False] and not short.skipped.any()
    dropped = dataset(tmp_path, truncation="drop")
    assert dropped[1].record_id == "id-2"
    assert dropped.skipped.tolist() == [False, True, False, False] and not dropped.shortened.any()
    with pytest.raises(SampleError, match=r"record 1 \(id 'id-1'\): the sequence of \d+ tokens is longer"):
        dataset(tmp_path, truncation="fail")[1]
    records[3] = {"id": "broken"}
    write_records(tmp_path / "data.json", records)
    with pytest.raises(SampleError, match="broken"):  # that one is no matter of length
        dataset(tmp_path, truncation="drop")[3]


def test_more_than_max_skipped_is_no_matter_of_single_records(tmp_path: Path) -> None:
    records = write_dataset(tmp_path, 20)
    bad = image_record(99, "<image>", "b")
    write_records(tmp_path / "data.json", [bad, bad, bad, *records])
    assert dataset(tmp_path, on_error="skip", max_skipped=0.15)[0].record_id == "id-0"
    with pytest.raises(
        DataError,
        match=r"3 of 23 records had to be skipped, more than model.data.max_skipped=0.1; the last: .*data.json, "
        r"record 2 \(id 'id-99'\): image file .* does not exist. Look whether model.data.data_path and",
    ):
        dataset(tmp_path, on_error="skip", max_skipped=0.1)[0]
    one_bad = tmp_path / "data.json"
    write_records(one_bad, [bad, *records[:3]])
    assert (
        dataset(tmp_path, on_error="skip", max_skipped=0.0)[0].record_id == "id-0"
    )  # one record may always be


def test_an_image_folder_that_vanishes_is_named_and_not_skipped(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3)
    (tmp_path / "images").mkdir()
    skipping = dataset(tmp_path, on_error="skip", image_folder=str(tmp_path / "images"))
    (tmp_path / "images").rmdir()
    with pytest.raises(
        DataError, match=r"model\.data\.image_folder: no folder at .*images any more"
    ) as raised:
        skipping[0]
    assert not isinstance(raised.value, SampleError)


def test_skipping_does_not_hide_a_template_that_the_tokenizer_cannot_write(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3)
    with pytest.raises(ValueError, match=r"writes '<\|im_start\|>'"):
        dataset(tmp_path, conv_template="chatml", on_error="skip")


def test_settings_that_cannot_work_are_refused_before_the_first_record(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3)
    with pytest.raises(
        ValueError,
        match=r"conv_template is 'v9', expected one of japanese, plain, v1, mistral, idefics2, v1_neva, ",
    ):
        dataset(tmp_path, conv_template="v9")
    with pytest.raises(ValueError, match=r"model\.data\.image_folder: no folder at .*absent"):
        dataset(tmp_path, image_folder=str(tmp_path / "absent"))
    small = OmegaConf.merge(model_cfg(tmp_path), {"vocab_size": 50})
    tokenizer = tokenizers.llama_like(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=rf"the tokenizer has {len(tokenizer)} ids, model\.vocab_size is 50"):
        build_dataset(small, VISION, tokenizer)  # type: ignore[arg-type]


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizers.joins_words(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer reads the end of a prompt otherwise"):
        build_encoder(model_cfg(tmp_path), tokenizer)


@pytest.mark.parametrize("system", ["", "be brief.", None])
def test_the_configured_system_prompt_is_for_conversations_that_bring_none(
    tmp_path: Path, system: str | None
) -> None:
    records = write_dataset(tmp_path, 3)
    records[2]["system"] = "own."
    write_records(tmp_path / "data.json", records)
    samples, explicit = dataset(tmp_path, system=system), dataset(tmp_path).encoder
    first, own = (samples.records[index] for index in (1, 2))
    assert samples[1].input_ids.tolist() == explicit.sample(first.turns, [4], system)[0]
    assert samples[2].input_ids.tolist() == explicit.sample(own.turns, [], "own.")[0]
    assert samples.encoder.prompt("What?", []) == explicit.prompt("What?", [], system)
    for given in ("own.", ""):
        assert samples.encoder.prompt("What?", [], given) == explicit.prompt("What?", [], given)


def test_a_model_recorded_without_the_key_has_the_template_s_system_prompt(tmp_path: Path) -> None:
    cfg, tokenizer = model_cfg(tmp_path), tokenizers.llama_like(tmp_path / "tokenizer")
    assert "system" not in cfg.data
    assert build_encoder(cfg, tokenizer).system is None


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (
            "mistral",
            "Be brief.",
            r"model\.data\.system is 'Be brief\.', but the template mistral has no system",
        ),
        ("plain", "Be brief.", r"model\.data\.system is 'Be brief\.', but the template plain has no system"),
        ("v1", "See <image>", r"model\.data\.system is 'See <image>'; take <image> out"),
    ],
)
def test_a_system_prompt_that_the_template_cannot_take_is_a_mistake_in_the_configuration(
    tmp_path: Path, template: str, system: str, message: str
) -> None:
    cfg = model_cfg(tmp_path, conv_template=template, system=system)
    with pytest.raises(ConfigError, match=message):
        build_encoder(cfg, tokenizers.llama_like(tmp_path / "tokenizer"))


def test_a_dataset_can_be_sent_to_another_process(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2)
    samples = dataset(tmp_path)
    records = pickle.loads(pickle.dumps(samples.records))
    assert records[1] == samples.records[1]
    assert pickle.loads(pickle.dumps(samples.encoder)).prompt("a", []) == samples.encoder.prompt("a", [])


def test_the_real_demo_with_an_image_twice_and_behind_the_question_becomes_samples(tmp_path: Path) -> None:
    """Photos, Chinese text, `<image>` in the second turn, one image twice in a conversation."""
    (tmp_path / "mllm_demo_data").symlink_to(shared_data("demo", "images"))
    path = shared_data("demo", "mllm_demo.json")
    raw = json.loads(path.read_text())
    samples = build_dataset(
        OmegaConf.merge(model_cfg(tmp_path, data_path=str(path)), {"vocab_size": 32000}),  # type: ignore[arg-type]
        VISION,
        tokenizers.vicuna(),
    )
    for index, record in enumerate(raw):
        sample = samples[index]
        assert len(sample.pixel_values) == len(record["images"])
        assert int((sample.input_ids == IMAGE_TOKEN_ID).sum()) == VISION.num_tokens * len(record["images"])
        learnt = sample.labels[sample.labels != IGNORE_INDEX]
        answers = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"]
        found = samples.encoder.tokenizer.decode(learnt).split("</s>")
        assert [answer.strip() for answer in found] == [*answers, ""]
