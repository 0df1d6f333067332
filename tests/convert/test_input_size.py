"""A tower that is shown another size than its own, exported: Hugging Face folders hold the interpolated positions."""

from dataclasses import replace

import pytest
import torch

from neva.config.stored import check_stored
from neva.config.tower import vision_config_of
from neva.constants import IMAGE_TOKEN_ID
from neva.convert.convert import convert
from neva.convert.options import Options
from neva.convert.readers import llava_hf
from neva.convert.readers.nemo import open_model
from neva.families.naming import TOWER
from neva.formats.nemo import open_nemo
from neva.model.build import build_model
from neva.weights.load import load_native
from tests.convert.llava import llava_nemo

pytestmark = pytest.mark.usefixtures("megatron")
POSITIONS = TOWER + "embeddings.position_embedding.weight"


def logits(model, ids, pixels):
    native = build_model(model.vision, model.language, model.connector).eval()
    load_native(native, model.weights, model.language.vocab_size)
    with torch.no_grad():
        return native(ids, pixels)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_export_computes_what_training_did_with_positions_of_another_size(tmp_path, kind):
    """The folder is proven by transformers; here the model that was read back is compared with the trained one."""
    path = llava_nemo(tmp_path, kind=kind, input_size=42)
    trained = open_model(path)
    convert(path, tmp_path / "hf", Options())
    back = llava_hf.read(tmp_path / "hf", Options())
    assert (trained.vision.image_size, back.vision.image_size, back.vision.input_size) == (28, 42, None)
    assert len(back.weights[POSITIONS]) - len(trained.weights[POSITIONS]) == (42 // 7) ** 2 - (28 // 7) ** 2
    ids = torch.tensor([[1, 5, *[IMAGE_TOKEN_ID] * 36, 7, 8]])
    pixels = torch.randn(1, 3, 42, 42)
    torch.testing.assert_close(logits(back, ids, pixels), logits(trained, ids, pixels), atol=1e-5, rtol=1e-5)
    convert(tmp_path / "hf", tmp_path / "again.nemo", Options())
    assert replace(open_model(tmp_path / "again.nemo").vision) == back.vision


def test_a_model_that_was_recorded_before_there_were_these_keys_is_read_as_it_was(tmp_path):
    config = open_nemo(llava_nemo(tmp_path)).config
    vision = vision_config_of(config)
    for key in ("input_size", "config", "post_layernorm"):
        config.mm_cfg.vision_encoder.pop(key)
    check_stored(config, "old.nemo")
    assert vision_config_of(config) == vision
    assert (vision.side, vision.kept_tokens, vision.others) == (28, 0, ())


def test_a_nemo_stays_as_it_was_trained(tmp_path):
    convert(llava_nemo(tmp_path, input_size=42), tmp_path / "whole.nemo", Options())
    vision = open_model(tmp_path / "whole.nemo").vision
    assert (vision.image_size, vision.input_size, vision.num_tokens) == (28, 42, 36)
