"""Two towers from the recipe through training, the `.nemo` and its conversion to answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from neva.convert.convert import convert
from neva.convert.options import Options
from neva.errors import CheckpointError
from neva.formats.nemo import open_nemo
from tests.convert.tiny import scramble
from tests.training.test_media_run import ask, run

PREFIX = "second_vision_tower.model."


def write_tower(folder: Path) -> Dinov2Model:
    """A DINOv2 that was trained with larger images and other colours."""
    sizes = {"hidden_size": 12, "mlp_ratio": 2, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = Dinov2Model(Dinov2Config(**sizes, image_size=24, patch_size=8))
    scramble(tower, 4)
    tower.save_pretrained(folder)
    settings = {
        "image_processor_type": "BitImageProcessor",
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "size": {"shortest_edge": 24},
        "crop_size": {"height": 24, "width": 24},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return tower


def test_a_second_tower_is_learnt_with_saved_and_answers_and_is_not_exported(
    tmp_path: Path, colours: list[str]
) -> None:
    tower = write_tower(tmp_path / "dinov2")
    section = "model.mm_cfg.second_vision_encoder"
    path = run(
        tmp_path,
        colours,
        "model/second_vision_encoder=from_checkpoint",
        f"{section}.from_pretrained={tmp_path}/dinov2",
        f"{section}.freeze=false",
    )
    trained = open_nemo(path).weights
    position = f"{PREFIX}embeddings.position_embeddings"
    assert trained[position].shape == (1, 1 + 9, 12)
    assert not torch.equal(trained[position], tower.embeddings.position_embeddings)
    assert trained["projector.0.weight"].shape == (32, 16 + 12)
    ask(tmp_path, path)
    convert(path, tmp_path / "again.nemo", Options())
    again = open_nemo(tmp_path / "again.nemo").weights
    assert all(torch.equal(again[name], trained[name]) for name in trained if name.startswith(PREFIX))
    with pytest.raises(
        CheckpointError, match="has two towers, which no layout of Hugging Face folders holds"
    ):
        convert(path, tmp_path / "hf", Options())
