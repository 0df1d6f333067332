"""Towers that are neither CLIP nor SigLIP: from Hugging Face folders and back, proven by transformers."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    LlavaForConditionalGeneration,
)

from neva.convert.convert import convert
from neva.convert.options import Options
from neva.convert.readers import llava_hf
from neva.convert.readers.nemo import open_model
from neva.errors import CheckpointError, ConfigError
from neva.families.naming import TOWER
from neva.families.vision_reading import read_vision_config, vision_config_from_hf
from neva.families.vision_sizes import SIZES
from neva.formats.hf_folder import FolderWeights
from neva.model.vision import VisionTower
from neva.weights.parts import tower_weights
from tests.convert.llava import image_processor, llava_nemo, write_tokenizer
from tests.convert.tiny import TOWER_SIZES, TOWERS, language_model, tower

pytestmark = pytest.mark.usefixtures("megatron")
DROPPED = {
    "dinov2_with_registers": {"class_token_length": 1, "kept_tokens": 3},
    "deit": {"class_token_length": 0, "kept_tokens": 2},
    "dinov3_vit": {"class_token_length": 1, "kept_tokens": 2},
    "vit_msn": {"class_token_length": 1},
}
"""What a llava-hf folder can drop of towers with several leading tokens: one or none."""


@pytest.mark.parametrize("kind", TOWERS)
def test_a_tower_gives_the_hidden_states_of_transformers_at_any_size(kind):
    theirs = tower(kind)
    vision = vision_config_from_hf(theirs.config.to_dict(), (0, 2, -1))
    if kind == "vit_msn":  # of which nothing is known here
        vision = replace(vision, class_token_length=1)
    ours = VisionTower(vision).eval()
    ours.model.load_state_dict(theirs.state_dict())
    for height, width in ((28, 28), (42, 21)):
        images = torch.randn(2, 3, height, width)
        is_told = (height, width) != (28, 28) and kind in ("vit", "deit", "vit_msn", "ijepa")
        switch = {"interpolate_pos_encoding": True} if is_told else {}
        states = theirs(images, output_hidden_states=True, **switch).hidden_states
        expected = torch.cat([states[layer][:, vision.class_token_length :] for layer in (0, 2, 3)], dim=-1)
        torch.testing.assert_close(ours(images), expected, atol=1e-6, rtol=1e-6)
    trained = [name for name, weight in ours.model.named_parameters() if ours.family.is_used(name, vision)]
    ours(images).sum().backward()
    with_gradient = [name for name, weight in ours.model.named_parameters() if weight.grad is not None]
    if ours.family.layers:
        assert trained == with_gradient


@pytest.mark.parametrize("kind", TOWERS)
def test_an_export_is_proven_and_comes_back_bit_for_bit(tmp_path, kind):
    path = llava_nemo(tmp_path, kind=kind, tower_changes=DROPPED.get(kind))
    convert(path, tmp_path / "hf", Options())
    report = json.loads((tmp_path / "hf" / "parity.json").read_text())
    assert report["verified"] and report["max_abs_logit_difference"] <= 2e-5  # float32 sums, logits up to 20
    trained, back = open_model(path), llava_hf.read(tmp_path / "hf", Options())
    assert back.vision == trained.vision
    assert set(back.weights) == set(trained.weights)
    assert all(torch.equal(back.weights[name], trained.weights[name]) for name in trained.weights)
    saved = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    saved.save_pretrained(tmp_path / "again")
    tower(kind).save_pretrained(tmp_path / "alone")
    names = {f"vision_tower.{name}" for name in FolderWeights(tmp_path / "alone")}
    assert names == {name for name in FolderWeights(tmp_path / "hf") if name.startswith("vision_tower.")}
    again = tower_weights(tmp_path / "again", trained.vision)
    assert all(torch.equal(again[name], trained.weights[name]) for name in again)


@pytest.mark.parametrize("kind", ["vit", "dinov2_with_registers"])
def test_a_tower_below_a_classifier_joins_a_language_model(tmp_path, kind):
    """Files of classifiers: other names, another prefix, a head to pass over, and no pooling layer."""
    config = AutoConfig.for_model(kind, **TOWER_SIZES | TOWERS[kind])
    classifier = AutoModelForImageClassification.from_config(config)
    classifier.save_pretrained(tmp_path / "eye", save_original_format=kind == "vit")
    processor = image_processor("siglip", 28)
    (tmp_path / "eye" / "preprocessor_config.json").write_text(json.dumps(processor))
    language_model("llama").save_pretrained(tmp_path / "llm")
    write_tokenizer(tmp_path / "llm")
    convert(tmp_path / "llm", tmp_path / "new.nemo", Options(tower_path=tmp_path / "eye"))
    model = open_model(tmp_path / "new.nemo")
    expected = dict(getattr(classifier, classifier.base_model_prefix).named_parameters())
    found = {
        name.removeprefix(TOWER): model.weights[name] for name in model.weights if name.startswith(TOWER)
    }
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    missing = set(found) - set(expected)
    assert model.vision.class_token_length == {"dinov2_with_registers": 4}.get(kind, 1)
    assert missing == ({"pooler.dense.weight", "pooler.dense.bias"} if kind == "vit" else set())
    assert not any(found[name].any() for name in missing)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_tower_of_clip_s_make_below_a_classifier_is_read(tmp_path, kind):
    config = AutoConfig.for_model(kind, vision_config=TOWER_SIZES)
    classifier = AutoModelForImageClassification.from_config(config)
    classifier.save_pretrained(tmp_path)
    weights = tower_weights(tmp_path, read_vision_config(tmp_path))
    expected = dict(classifier.vision_model.named_parameters())
    assert {name.removeprefix(TOWER) for name in weights} == expected.keys()
    assert all(torch.equal(weights[TOWER + name], tensor) for name, tensor in expected.items())


def test_siglip_2_of_one_resolution_is_a_siglip(tmp_path):
    """google/siglip2-…-patch14-384 and its relatives say model_type siglip."""
    vision = {"model_type": "siglip_vision_model", **TOWER_SIZES}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": vision}))
    assert read_vision_config(tmp_path).model_type == "siglip"


def test_what_clip_says_twice_is_read_as_transformers_reads_it():
    """Its first files have the sizes under `vision_config_dict` too, which counts."""
    said = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 40}
    whole = {
        "model_type": "clip",
        "vision_config": {**said, "patch_size": 14},
        "vision_config_dict": {**said, "patch_size": 16, "hidden_act": "gelu"},
    }
    expected = CLIPConfig(**copy.deepcopy(whole)).vision_config
    found = vision_config_from_hf(whole)
    for key, field in SIZES.items():
        assert getattr(found, field) == getattr(expected, key)
    assert (found.hidden_act, found.patch_size) == ("gelu", 16)
    assert vision_config_from_hf(whole | {"vision_config_dict": None}).patch_size == 14


def test_towers_that_cannot_be_exported_say_why(tmp_path):
    for kind, changes, message in (
        (
            "dinov2_with_registers",
            {},
            "class_token_length is 4; .*class_token_length=1, which keeps the others",
        ),
        ("dinov2", {"others": (("use_swiglu_ffn", True),)}, "joins or cuts tensors of a 'dinov2' tower"),
        ("dinov2", {"post_layernorm": True}, "post_layernorm=true, which a llava-hf folder cannot say"),
    ):
        with pytest.raises(CheckpointError, match=message):
            (tmp_path / "model.nemo").unlink(missing_ok=True)
            convert(llava_nemo(tmp_path, kind=kind, tower_changes=changes), tmp_path / "hf", Options())


def test_what_is_no_tower_of_transformers_is_refused_in_a_sentence():
    sizes = {**TOWER_SIZES, "model_type": "intern_vit_6b"}
    with pytest.raises(ConfigError, match="model_type: found 'intern_vit_6b', expected 'clip'"):
        VisionTower(vision_config_from_hf(sizes))
    radio = AutoModel.from_config(AutoConfig.for_model("mlcd_vision_model", **TOWER_SIZES)).config.to_dict()
    with pytest.raises(ConfigError, match="gives 17 tokens of width 24, expected 16 of 24"):
        VisionTower(vision_config_from_hf(radio))
