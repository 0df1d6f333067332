"""SigLIP 2 NaFlex: from its folder into a model, back under its own names, and why there is no folder of LLaVA's."""

from __future__ import annotations

import pytest
import torch

from neva.convert.convert import convert
from neva.convert.options import Options
from neva.convert.readers.nemo import open_model
from neva.errors import CheckpointError
from neva.families.naming import TOWER, VISION_MODEL
from neva.families.vision_table import tower_table
from neva.formats.hf_folder import FolderWeights
from neva.weights.lazy import Filtered
from tests.convert.llava import write_tokenizer
from tests.convert.tiny import language_model
from tests.siglip2 import build, processor

pytestmark = pytest.mark.usefixtures("megatron")


def test_a_tower_joins_a_language_model_bit_for_bit(tmp_path):
    tower = build()
    tower.save_pretrained(tmp_path / "eye")
    processor(20).save_pretrained(tmp_path / "eye")
    language_model("llama").save_pretrained(tmp_path / "llm")
    write_tokenizer(tmp_path / "llm")
    convert(tmp_path / "llm", tmp_path / "new.nemo", Options(tower_path=tmp_path / "eye"))
    model = open_model(tmp_path / "new.nemo")
    assert (model.vision.model_type, model.vision.num_tokens) == ("siglip2", 16)
    settings = model.image_processor
    assert settings is not None and (settings["size"], settings["resample"]) == (
        {"height": 28, "width": 28},
        2,
    )
    for name, weight in tower.named_parameters():
        assert torch.equal(model.weights[TOWER + name], weight)
    stored = FolderWeights(tmp_path / "eye")
    prefix = VISION_MODEL if any(name.startswith(VISION_MODEL) for name in stored) else ""
    again = dict(tower_table(model.tower_shapes, prefix).to_hf(Filtered(model.weights, TOWER)))
    assert set(again) == set(stored)
    assert all(torch.equal(again[name], stored[name]) for name in stored)
    with pytest.raises(CheckpointError, match="a 'siglip2' tower, which needs the shape of each picture"):
        convert(tmp_path / "new.nemo", tmp_path / "hf", Options())
    assert not (tmp_path / "hf").exists()
