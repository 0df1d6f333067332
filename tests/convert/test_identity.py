"""A model without projection: its features enter as they are, its files lack a part and are whole."""

import json

import pytest
import torch

from neva.config.load import load
from neva.constants import IMAGE_TOKEN_ID
from neva.convert.convert import convert
from neva.convert.options import Options
from neva.convert.parity.native import loaded
from neva.convert.readers.nemo import open_model
from neva.errors import CheckpointError, ConfigError
from tests.convert.llava import llava_nemo

pytestmark = pytest.mark.usefixtures("megatron")
AS_WIDE = {"hidden_size": 24}


@pytest.fixture
def path(tmp_path):
    return llava_nemo(tmp_path, connector="identity", changes=AS_WIDE)


def test_features_enter_as_the_tower_gives_them(path):
    with loaded(open_model(path)) as model:
        pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
        features = model.vision_tower(pixels)
        assert torch.equal(model.encode_images(pixels), features.flatten(0, 1))
        ids = torch.full((1, features.size(1) + 1), IMAGE_TOKEN_ID)
        ids[0, -1] = 5
        assert torch.equal(model.embed(ids, pixels[:1])[0, :-1], features[0])


def test_a_nemo_goes_to_the_original_layout_and_back(path, tmp_path):
    convert(path, tmp_path / "llava-export", Options(layout="original"))
    folder = tmp_path / "llava-export"
    assert json.loads((folder / "parity.json").read_text())["verified"]
    assert json.loads((folder / "config.json").read_text())["mm_projector_type"] == "identity"
    convert(folder, tmp_path / "back.nemo", Options())
    first, back = open_model(path), open_model(tmp_path / "back.nemo")
    assert back.connector == "identity" and set(first.weights) == set(back.weights)
    assert all(torch.equal(first.weights[name], back.weights[name]) for name in first.weights)
    convert(path, tmp_path / "whole.nemo", Options())
    assert set(open_model(tmp_path / "whole.nemo").weights) == set(first.weights)


def test_the_llava_hf_layout_has_no_such_projector(path, tmp_path):
    with pytest.raises(CheckpointError, match="this one is identity; export the original layout"):
        convert(path, tmp_path / "hf", Options())


def test_widths_that_differ_and_a_run_that_learns_nothing_are_refused():
    kind = "model.mm_cfg.mm_mlp_adapter_type=identity"
    with pytest.raises(
        ConfigError, match="features are 1024 wide, the language model 4096; expected the same"
    ):
        load("llava_7b_finetune", [kind])
    same = ["model.hidden_size=1024", "model.num_attention_heads=8", "model.kv_channels=128", kind]
    with pytest.raises(ConfigError, match="nothing would train; set model.mm_cfg.llm.freeze"):
        load("llava_7b_pretrain", same)
