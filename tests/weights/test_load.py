"""Models filled from Hugging Face folders compute what transformers computes from the same folders."""

import json

import pytest
import torch

from neva.families.mapping import ConversionError
from neva.formats.nemo import open_nemo, write_nemo
from neva.weights.load import load_language_model, load_native, load_vision_tower
from tests.convert.native import (
    ANY_TOWER,
    TOLERANCE,
    config_of,
    native_model,
    random_ids,
    shapes_of,
    text_logits,
)
from tests.convert.tiny import FAMILIES, language_model, tower

pytestmark = pytest.mark.usefixtures("megatron")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, tmp_path):
    reference = language_model(family)
    reference.save_pretrained(tmp_path)
    vision, language = shapes_of(config_of(tmp_path), padded=256)
    model = native_model(vision, language)
    load_language_model(model, tmp_path, language)
    ids = random_ids(language.vocab_size, length=70)
    with torch.no_grad():
        expected = reference(ids).logits
    difference = (text_logits(model, ids) - expected).abs().max().item()
    scale = expected.abs().max().item()
    assert difference <= TOLERANCE * max(1.0, scale), (difference, scale)


def test_shards_bins_and_prefixes_are_read(tmp_path):
    reference = language_model("llama")
    reference.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    bins = tmp_path / "bins"
    bins.mkdir()
    state = dict(reference.state_dict())
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(
        3
    )  # as LLaMA checkpoints of 2023 have it
    torch.save(state, bins / "pytorch_model.bin")
    weight_map = {}
    (tmp_path / "sharded_bins").mkdir()
    for number in (1, 2):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        part = {name: state[name] for name in sorted(state)[number - 1 :: 2]}
        torch.save(part, tmp_path / "sharded_bins" / file)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (tmp_path / "sharded_bins" / "pytorch_model.bin.index.json").write_text(index)
    _, language = shapes_of(config_of(tmp_path / "sharded"))
    vision, _ = shapes_of(ANY_TOWER | {"text_config": config_of(tmp_path / "sharded")})
    models = [native_model(vision, language) for _ in range(3)]
    for model, folder in zip(models, ("sharded", "bins", "sharded_bins"), strict=True):
        load_language_model(model, tmp_path / folder, language)
    ids = random_ids(language.vocab_size)
    for model in models[1:]:
        assert torch.equal(text_logits(models[0], ids), text_logits(model, ids))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("stored", ["5.x", "canonical", "contrastive"])
def test_tower_features_equal_transformers(kind, stored, tmp_path):
    reference = tower(kind)
    weights = dict(reference.state_dict())
    if stored != "5.x":
        weights = {f"vision_model.{name}": tensor for name, tensor in weights.items()}
    if stored == "contrastive":
        weights |= {
            "text_model.x": torch.ones(1),
            "logit_scale": torch.ones(()),
            "visual_projection.weight": torch.ones(1),
        }
        weights["vision_model.embeddings.position_ids"] = torch.arange(17)
    (tmp_path / "config.json").write_text(reference.config.to_json_string())
    torch.save(weights, tmp_path / "pytorch_model.bin")
    vision, language = shapes_of(
        {"vision_config": config_of(tmp_path), "text_config": language_model("llama").config.to_dict()}
    )
    model = native_model(vision, language)
    load_vision_tower(model, tmp_path)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = reference(pixels, output_hidden_states=True).hidden_states[-2][
            :, vision.class_token_length :
        ]
        found = model.vision_tower(pixels)
    assert (found - expected).abs().max().item() <= TOLERANCE


def test_missing_and_wrong_tensors_are_named(tmp_path):
    reference = language_model("llama")
    reference.save_pretrained(tmp_path)
    vision, language = shapes_of(config_of(tmp_path))
    model = native_model(vision, language)
    state = dict(reference.state_dict())
    del state["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="missing: model.layers.1.mlp.up_proj.weight"):
        load_language_model(model, tmp_path, language)


def native_weights(model):
    return [(name, tensor) for name, tensor in model.named_parameters()]


def test_nemo_restores_the_whole_model_and_single_parts(tmp_path):
    vision, language = shapes_of(
        ANY_TOWER | {"text_config": language_model("qwen2_untied").config.to_dict()}, padded=256
    )
    source, target = native_model(vision, language), native_model(vision, language)
    write_nemo(
        tmp_path / "m.nemo",
        {"vocab_size": language.vocab_size},
        native_weights(source),
        None,
        None,
        "test",
        {},
    )
    weights = open_nemo(tmp_path / "m.nemo").weights
    load_native(target, weights, language.vocab_size, ("projector",))
    assert torch.equal(target.projector[2].bias, source.projector[2].bias)
    assert not torch.equal(
        target.language_model.output_layer.weight, source.language_model.output_layer.weight
    )
    load_language_model(target, tmp_path / "m.nemo", language)
    load_vision_tower(target, tmp_path / "m.nemo")
    for (name, found), (_, expected) in zip(native_weights(target), native_weights(source), strict=True):
        rows = language.vocab_size if "word_embeddings" in name or "output_layer" in name else None
        assert torch.equal(found[:rows], expected[:rows]), name
    with pytest.raises(ConversionError, match="no weights for"):
        load_native(target, {}, language.vocab_size, ("projector",))
    with pytest.raises(ConversionError, match="has no parameter projector.9.bias"):
        load_native(target, {"projector.9.bias": torch.ones(1)}, language.vocab_size, ("projector",))
