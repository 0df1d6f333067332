"""Several hidden states of a tower, its class token, its last norm: trained, exported and read back."""

import json
from dataclasses import replace

import pytest
import torch

from neva.constants import IMAGE_TOKEN_ID
from neva.convert.convert import convert
from neva.convert.options import Options
from neva.convert.readers import llava_hf
from neva.convert.readers.nemo import open_model
from neva.errors import CheckpointError, ConfigError
from neva.families.vision_reading import vision_config_from_hf
from neva.model.build import build_model, set_trainable
from neva.model.vision import VisionTower
from tests.convert.llava import llava_nemo
from tests.convert.tiny import TOWER_SIZES, tower

pytestmark = pytest.mark.usefixtures("megatron")


@pytest.mark.parametrize(
    ("kind", "layers", "changes"),
    [
        ("clip", (-2, 1), {}),
        ("siglip", (0, -1, -3), {}),
        ("clip", -2, {"class_token_length": 0, "kept_tokens": 1}),
        ("clip", (-1, -2), {"class_token_length": 0, "kept_tokens": 1}),
        ("dinov2", (1, 3), {}),
    ],
)
def test_joined_layers_and_a_kept_class_token_are_proven_and_read_back(tmp_path, kind, layers, changes):
    path = llava_nemo(tmp_path, kind=kind, select_layer=layers, tower_changes=changes)
    convert(path, tmp_path / "hf", Options())
    assert json.loads((tmp_path / "hf" / "parity.json").read_text())["verified"]
    back = llava_hf.read(tmp_path / "hf", Options())
    assert back.vision == open_model(path).vision
    assert back.vision.num_tokens == 16 + changes.get("kept_tokens", 0)
    width = 24 * (len(layers) if isinstance(layers, tuple) else 1)
    assert back.weights["projector.0.weight"].shape == (36, width)
    convert(tmp_path / "hf", tmp_path / "again.nemo", Options())
    again = open_model(tmp_path / "again.nemo")
    assert again.vision == back.vision
    assert again.config.data.image_token_len == back.vision.num_tokens


def test_the_original_layout_holds_a_kept_class_token_and_refuses_joined_layers(tmp_path):
    kept = {"class_token_length": 0, "kept_tokens": 1}
    convert(llava_nemo(tmp_path, tower_changes=kept), tmp_path / "llava-kept", Options(layout="original"))
    config = json.loads((tmp_path / "llava-kept" / "config.json").read_text())
    assert config["mm_vision_select_feature"] == "cls_patch"
    convert(tmp_path / "llava-kept", tmp_path / "back.nemo", Options())
    assert open_model(tmp_path / "back.nemo").vision == open_model(tmp_path / "model.nemo").vision
    (tmp_path / "model.nemo").unlink()
    with pytest.raises(CheckpointError, match="takes one hidden state of the tower as it is"):
        path = llava_nemo(tmp_path, select_layer=(-1, -2))
        convert(path, tmp_path / "llava-joined", Options(layout="original"))


@pytest.mark.parametrize("kind", ["siglip", "dinov2", "vit", "dinov3_vit"])
def test_the_last_norm_gives_what_transformers_calls_the_last_hidden_state(kind):
    theirs = tower(kind)
    vision = replace(vision_config_from_hf(theirs.config.to_dict(), -1), post_layernorm=True)
    ours = VisionTower(vision).eval()
    ours.model.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 28, 28)
    expected = theirs(images).last_hidden_state[:, vision.class_token_length :]
    torch.testing.assert_close(ours(images), expected, atol=1e-6, rtol=1e-6)
    norm = ours.family.last_norm
    assert {name for name, _ in ours.model.named_parameters() if ours.family.is_used(name, vision)} > {
        f"{norm}.weight",
        f"{norm}.bias",
    }


def test_layers_up_to_the_last_selected_one_train(tmp_path):
    model = open_model(llava_nemo(tmp_path, select_layer=(1, 2)))
    built = build_model(model.vision, model.language, model.connector)
    set_trainable(built, ["vision_tower"])
    ids = torch.tensor([[1, *[IMAGE_TOKEN_ID] * 16, 5, 7]])
    built(ids, torch.randn(1, 3, 28, 28)).sum().backward()
    for name, weight in built.vision_tower.model.named_parameters():
        assert weight.requires_grad == (weight.grad is not None), name
    assert not any(weight.requires_grad for weight in built.vision_tower.model.encoder.layers[2].parameters())


def test_a_hidden_state_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"found \[-1, 9\], expected -4..3 for a tower of 3 layers"):
        vision_config_from_hf({"model_type": "clip", **TOWER_SIZES}, (-1, 9))
