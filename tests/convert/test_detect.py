"""What a source holds is decided once, and each target takes only its own flags."""

import json
from pathlib import Path

import pytest

from neva.convert import detect, targets
from neva.convert.options import Options
from neva.convert.readers import llava_original
from neva.errors import CheckpointError, ConfigError
from neva.formats.nemo import write_nemo
from neva.formats.nemo_header import is_nemo, is_nemo1


def folder(path: Path, config: dict) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def nemo(path: Path, config: dict) -> Path:
    write_nemo(path, {"vocab_size": 2, **config}, [], None, None, "test", {})
    return path


def test_kinds_are_told_apart(tmp_path):
    text = folder(tmp_path / "text", {"model_type": "llama"})
    assert detect.detect(text) is detect.TEXT
    assert detect.detect(text, adds_tower=True) is detect.PARTS
    assert detect.detect(nemo(tmp_path / "t.nemo", {})) is detect.TEXT
    assert detect.detect(nemo(tmp_path / "m.nemo", {"mm_cfg": {}})) is detect.NEMO
    llava = detect.detect(folder(tmp_path / "hf", {"model_type": "llava"}))
    assert llava.words == "LLaVA model in llava-hf layout"
    original = detect.detect(folder(tmp_path / "original", {"model_type": "llava", "mm_vision_tower": "x"}))
    assert original.words == "LLaVA model in the original layout"
    with pytest.raises(CheckpointError, match="does not exist"):
        detect.detect(tmp_path / "none")
    with pytest.raises(CheckpointError, match="has no config.json"):
        detect.detect(tmp_path)


TEXT_SIZES = {"model_type": "qwen2", "hidden_size": 8}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "vipllava", "vision_config": {"hidden_size": 8}, "text_config": TEXT_SIZES},
        {"model_type": "video_llava", "vision_config": {"hidden_size": 8}, "text_config": TEXT_SIZES},
        {"model_type": "qwen2_5_vl", "vision_config": {"depth": 8}, "hidden_size": 8},
        {"model_type": "llama", "visual": {"layers": 2}},
        {"model_type": "llama", "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": None},
        {"model_type": "ultravox", "audio_config": {"hidden_size": 8}},
    ],
)
def test_a_model_with_other_parts_is_no_language_model(tmp_path, config):
    source = folder(tmp_path / "x", config)
    with pytest.raises(
        CheckpointError, match=rf"is a '{config['model_type']}' model with more than a language"
    ):
        detect.detect(source)
    with pytest.raises(CheckpointError, match="expected a language model, a llava-hf folder"):
        detect.detect(source, adds_tower=True)


LLAVA_1_5 = {
    "model_type": "llava_llama",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_use_im_patch_token": True,
    "image_aspect_ratio": "pad",
    "mm_resampler_type": None,
    "image_grid_pinpoints": None,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres', expected 'square' or 'pad'"),
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio is 'anyres_max_9'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True, expected None"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type is 'spatial_unpad', expected 'flat'"),
        (
            {"mm_vision_select_feature": "cls"},
            "mm_vision_select_feature is 'cls', expected 'patch' or 'cls_patch'",
        ),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type is 'perceiver'"),
        ({"mm_spatial_pool_stride": 2}, "mm_spatial_pool_stride is 2"),
        ({"s2": True}, "s2 is True"),
    ],
)
def test_a_later_kind_of_llava_is_not_taken_for_llava_1_5(tmp_path, changes, message):
    source = folder(tmp_path / "x", {**LLAVA_1_5, **changes})
    with pytest.raises(CheckpointError, match=message):
        llava_original.read(source, Options())


@pytest.mark.parametrize("changes", [{}, {"image_aspect_ratio": None}, {"mm_projector_lr": 1e-5}])
def test_keys_of_training_are_no_other_kind(tmp_path, changes):
    source = folder(tmp_path / "x", {**LLAVA_1_5, **changes})
    with pytest.raises(CheckpointError, match="has neither model.safetensors nor"):  # weights come next
        llava_original.read(source, Options())


def test_a_nemo_is_a_file_of_that_name_or_an_extracted_folder(tmp_path):
    path = nemo(tmp_path / "m.nemo", {})
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    assert is_nemo(path) and is_nemo(str(path))
    assert not is_nemo(other) and not is_nemo(tmp_path) and not is_nemo(tmp_path / "none.nemo")
    assert not is_nemo(None) and not is_nemo("")
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    (extracted / "model_config.yaml").write_text("a: 1")
    assert is_nemo(extracted) and is_nemo1(extracted) and detect.detect(extracted) is detect.NEMO1
    (extracted / "manifest.json").write_text("{}")
    assert is_nemo(extracted) and not is_nemo1(extracted) and not is_nemo1(path)


@pytest.mark.parametrize(
    ("kind", "target", "options", "message"),
    [
        (detect.TEXT, "x", Options(add_tokens=("<a>",)), "--add_tokens extends a language model"),
        (detect.NEMO, "x.nemo", Options(add_tokens=("<a>",)), "--add_tokens extends a language model"),
        (detect.TEXT, "x.nemo", Options(vocab_multiple=64), "--pad_vocab_to pads the vocabulary"),
        (detect.NEMO, "x", Options(vocab_multiple=64, layout="original"), "--pad_vocab_to pads"),
        (detect.TEXT, "x.nemo", Options(add_tokens=("<a>",)), None),
        (detect.PARTS, "x", Options(vocab_multiple=64), None),
    ],
)
def test_a_flag_that_a_target_does_not_take_is_refused(kind, target, options, message):
    form = targets.target_form(kind, Path(target), options)
    if message is None:
        form.refuse_others(options)
        return
    with pytest.raises(ConfigError, match=message):
        form.refuse_others(options)
