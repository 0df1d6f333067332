"""LLaVA-OneVision's folders: read bit for bit, written back, proven against transformers with images and videos."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from neva.convert.convert import convert
from neva.convert.options import Options
from neva.convert.parity.figures import ParityError
from neva.convert.parity.onevision import onevision_processor, prove_onevision
from neva.convert.readers import llava_hf
from neva.convert.readers.nemo import open_model
from neva.convert.writers.llava_hf import write_llava_hf
from neva.data import feature_order
from neva.errors import CheckpointError
from neva.families import media_tokens
from neva.families.any_resolution import CappedResolution
from neva.formats.hf_folder import FolderWeights
from neva.formats.json import read_object, write_json
from tests.convert.llava import image_processor, llava_nemo, write_tokenizer
from tests.convert.tiny import SIZES, TOWER_SIZES, scramble

pytestmark = pytest.mark.usefixtures("megatron")
PINPOINTS = [[28 * rows, 28 * columns] for rows in range(1, 4) for columns in range(1, 4)]
ROOM = {"max_position_embeddings": 512}


@pytest.fixture
def model(tmp_path):
    return open_model(
        llava_nemo(
            tmp_path,
            "qwen2_untied",
            "siglip",
            aspect_ratio="anyres_max_2",
            template="chatml",
            pinpoints=PINPOINTS,
            changes=ROOM,
        )
    )


def written(model, folder):
    folder.mkdir()
    write_llava_hf(model, folder, None)
    return folder


def test_a_model_is_proven_and_comes_back_bit_for_bit(model, tmp_path):
    folder = written(model, tmp_path / "export")
    prove_onevision(model, folder)
    report = json.loads((folder / "parity.json").read_text())
    # one image, one high, two, one beyond the cap, a video, a text
    assert report["verified"] and report["samples"] == report["greedy_answers_equal"] == 6
    assert report["max_abs_logit_difference"] <= 2e-5  # float32 sums in another order, logits up to 20
    config = read_object(folder / "config.json")
    assert config["model_type"] == "llava_onevision" and config["vision_aspect_ratio"] == "anyres_max_2"
    assert (config["image_token_index"], config["video_token_index"]) == (133, 134)
    assert config["text_config"]["vocab_size"] == 135
    back = llava_hf.read(folder, Options())
    assert back.config.data.image_aspect_ratio == "anyres_max_2"
    assert back.config.data.conv_template == "chatml" and back.config.data.system == model.config.data.system
    assert back.language == model.language and back.vision == model.vision
    assert set(back.weights) == set(model.weights)
    for name in model.weights:
        assert torch.equal(back.weights[name], model.weights[name]), name
    assert b"<image>" not in back.tokenizer["tokenizer.json"]
    assert b"<video>" not in back.tokenizer["tokenizer.json"]


def save_theirs(folder, layer=-1):
    """A folder as the hub has them: both tokens within the vocabulary, rows to spare behind them."""
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**{**SIZES, "vocab_size": 144, **ROOM}).to_dict(),
        vision_config=SiglipVisionConfig(**TOWER_SIZES, vision_use_head=False).to_dict(),
        image_token_index=133,
        video_token_index=134,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=layer,
        vision_aspect_ratio="anyres_max_2",
    )
    theirs = scramble(LlavaOnevisionForConditionalGeneration(config), 5)
    theirs.save_pretrained(folder)
    write_tokenizer(folder, 133)
    content = read_object(folder / "tokenizer.json")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    for number, token in ((133, "<image>"), (134, "<video>")):
        content["added_tokens"].append({"id": number, "content": token, **flags})
    write_json(folder / "tokenizer.json", content)
    size = {"size": {"height": 28, "width": 28}, "image_grid_pinpoints": PINPOINTS}
    processor = LlavaOnevisionImageProcessorPil(**size, resample=image_processor("siglip", 28)["resample"])
    write_json(
        folder / "preprocessor_config.json",
        {**processor.to_dict(), "image_processor_type": "LlavaOnevisionImageProcessor"},
    )
    return folder


def test_a_folder_of_theirs_becomes_a_nemo_and_comes_back_with_the_same_tensors(tmp_path):
    save_theirs(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "model.nemo", Options())
    convert(tmp_path / "model.nemo", tmp_path / "ours", Options())
    shown = open_model(tmp_path / "model.nemo").config.data
    assert (shown.media_type, shown.num_frames) == ("video", 32)  # as the recipe of such models has it
    theirs, ours = FolderWeights(tmp_path / "theirs"), FolderWeights(tmp_path / "ours")
    # transformers 5 names the tower's tensors without the module that those on the hub have
    named = {name.replace("vision_model.", ""): name for name in ours}
    assert set(theirs) == set(named)
    for name in theirs:
        assert torch.equal(theirs[name], ours[named[name]]), name
    settings = [
        LlavaOnevisionImageProcessorPil.from_pretrained(tmp_path / name).to_dict()
        for name in ("theirs", "ours")
    ]
    used = ("size", "resample", "image_mean", "image_std", "image_grid_pinpoints", "do_pad", "crop_size")
    assert [settings[0].get(key) for key in used] == [settings[1].get(key) for key in used]
    processor = onevision_processor(tmp_path / "ours")
    content = [{"type": "text", "text": "Why?"}, {"type": "image"}, {"type": "video"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}])
    assert "<image>\n<video>\nWhy?" in prompt
    convert(tmp_path / "ours", tmp_path / "again.nemo", Options())
    again, first = open_model(tmp_path / "again.nemo"), open_model(tmp_path / "model.nemo")
    assert again.config == first.config and again.vision == first.vision


def one_row_later(layout, window):
    order = feature_order_map(layout, window)
    return order[list(range(1, len(order))) + [0]]


def newline_within(layout, window):
    order = feature_order_map(layout, window)
    columns = (layout.reduced or (0, window[3] - window[2]))[1]
    order[[columns - 1, columns]] = order[[columns, columns - 1]]
    return order


feature_order_map = feature_order._map


@pytest.mark.parametrize(
    "harm",
    {
        "newline at the wrong place": lambda patch: patch.setattr(feature_order, "_map", newline_within),
        "a row later": lambda patch: patch.setattr(feature_order, "_map", one_row_later),
        "unpadded by one": lambda patch: patch.setattr(
            media_tokens, "_unpadded", lambda grid, side, *size: (0, grid.rows * side, 0, grid.columns * side)
        ),
        "no cap": lambda patch: patch.setattr(CappedResolution, "tolerance", 100.0),
        "several cut": lambda patch: patch.setattr(CappedResolution, "cuts_one_alone", False),
        "frames not pooled": lambda patch: patch.setattr(CappedResolution, "pools_frames", False),
        "frames pooled otherwise": lambda patch: patch.setattr(
            feature_order, "_between", lambda size, target: between(size, target)
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_the_proof_sees_what_is_laid_out_otherwise(model, tmp_path, harm, monkeypatch):
    folder = written(model, tmp_path / "export")
    feature_order.order_of.cache_clear()
    harm[1](monkeypatch)
    try:
        with pytest.raises((ParityError, ValueError, IndexError)):
            prove_onevision(model, folder)
    finally:
        feature_order.order_of.cache_clear()


def between(size, target, own=feature_order._between):
    low, high, share = own(size, target)
    return low, high, share * 0


def test_the_proof_sees_another_newline(model, tmp_path):
    folder = written(model, tmp_path / "export")
    name = "projector.image_newline"
    changed = replace(model, weights={**model.weights, name: torch.zeros_like(model.weights[name])})
    with pytest.raises(ParityError):
        prove_onevision(changed, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision_aspect_ratio": "anyres"},
            "vision_aspect_ratio is 'anyres', expected one such as anyres_max_9",
        ),
        ({"image_grid_pinpoints": [[28, 30]]}, "the image processor have other image_grid_pinpoints"),
    ],
)
def test_a_folder_that_neva_cannot_have_is_refused(model, tmp_path, changes, message):
    folder = written(model, tmp_path / "export")
    write_json(folder / "config.json", read_object(folder / "config.json") | changes)
    with pytest.raises(CheckpointError, match=message):
        llava_hf.read(folder, Options())
