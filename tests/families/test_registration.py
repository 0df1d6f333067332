"""A language family, a tower and a connector that a user registers are read, sized, built, stored and exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from neva.config.language import language_config_of
from neva.config.load import load
from neva.constants import IMAGE_TOKEN_ID
from neva.convert.writers.hf_config import language_section, stored_config, text_config, vision_config
from neva.data.media.processor import build_image_processor
from neva.errors import CheckpointError, ConfigError
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.connector import connector_named, projector_table
from neva.families.language import exported_family, language_config_from_hf, language_table
from neva.families.media_tokens import tokens_per_image
from neva.families.naming import LLAVA_HF, LLAVA_ORIGINAL
from neva.families.vision_reading import vision_config_from_hf
from neva.families.vision_table import stored_tower, tower_shapes, tower_table
from neva.model.build import build_model
from neva.model.vision import VisionTower
from neva.planner.tensors import ModelSpec, Split, stage_weights
from neva.registry import CONNECTORS, LANGUAGE_FAMILIES, VISION_FAMILIES
from tests.families.toys import TOY_LANGUAGE, TOY_TOWER, HalvingConnector, registered

LANGUAGE = {
    "model_type": "toy_lm",
    "n_vocab": 128,
    "n_embd": 32,
    "n_layer": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
}
TOWER = {"model_type": "toy_tower", "image_size": 56, "hidden_size": 24, "num_hidden_layers": 2}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


@pytest.fixture(autouse=True)
def toys() -> Any:
    with (
        registered(LANGUAGE_FAMILIES, "toy_lm", TOY_LANGUAGE),
        registered(VISION_FAMILIES, "toy_tower", TOY_TOWER),
        registered(CONNECTORS, r"halve\d", HalvingConnector),
    ):
        yield


@pytest.fixture
def language() -> LanguageConfig:
    return language_config_from_hf(LANGUAGE)


@pytest.fixture
def vision() -> VisionConfig:
    return vision_config_from_hf(TOWER, select_layer=-1)


def folder(path: Path, config: dict[str, Any]) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def recipe(tmp_path: Path, *more: str) -> DictConfig:
    return load(
        "llava_7b_pretrain",
        [
            "model/llm=from_checkpoint",
            "model/vision_encoder=from_checkpoint",
            f"model.mm_cfg.llm.from_pretrained={folder(tmp_path / 'llm', LANGUAGE)}",
            f"model.mm_cfg.vision_encoder.from_pretrained={folder(tmp_path / 'tower', TOWER)}",
            "model.mm_cfg.vision_encoder.vision_select_layer=-1",
            "model.mm_cfg.vision_encoder.image_mean=[0.5,0.5,0.5]",
            "model.mm_cfg.vision_encoder.image_std=[0.5,0.5,0.5]",
            "model.mm_cfg.mm_mlp_adapter_type=halve1",
            "parallel=single",
            "trainer.devices=1",
            "trainer.num_nodes=1",
            *more,
        ],
    )


def test_a_written_configuration_is_read_back_with_its_family(language: LanguageConfig) -> None:
    written = text_config(language, torch.float32, IDS)
    assert (language.family, written["model_type"], written["n_embd"]) == ("toy_lm", "toy_lm", 32)
    assert written["architectures"] == ["ToyForCausalLM"]
    assert language_config_from_hf(written) == language


def test_a_family_that_the_sizes_tell_is_not_recorded() -> None:
    language = language_config_from_hf({"model_type": "qwen2", "num_hidden_layers": 2})
    assert (language.family, exported_family(language).model_type) == (None, "qwen2")
    assert "family" not in language_section(language)


def test_a_language_model_alone_records_its_family(language: LanguageConfig) -> None:
    assert stored_config(DictConfig(language_section(language))) == language


@pytest.mark.parametrize("tied", [False, True])
def test_tensors_of_other_names_make_the_round_trip(language: LanguageConfig, tied: bool) -> None:
    table = language_table(replace(language, tied=tied), LLAVA_HF)
    assert "language_model.model.h.1.attn.q_proj.weight" in table.hf_names
    assert ("language_model.unembed.weight" in table.hf_names) is not tied
    shapes = {"input_layernorm.weight": (32,), **TOY_LANGUAGE.layer_shapes(language)}
    native = {name: torch.randn(shapes.get(name.split(".", 4)[-1], (128, 32))) for name in table.native_names}
    native["language_model.decoder.final_layernorm.weight"] = torch.randn(32)
    back = dict(table.to_native(dict(table.to_hf(native))))
    assert all(torch.equal(back[name], tensor) for name, tensor in native.items())


def test_a_recipe_takes_family_and_positions_from_what_is_registered(tmp_path: Path) -> None:
    cfg = recipe(tmp_path)
    assert cfg.model.mm_cfg.llm.family == "toy_lm"
    assert language_config_of(cfg.model).family == "toy_lm"
    assert cfg.model.mm_cfg.vision_encoder.class_token_length == 1
    assert cfg.model.data.image_token_len == (56 // 14) ** 2 // 2
    processor = build_image_processor(cfg.model.mm_cfg.vision_encoder)
    assert type(processor).__name__ == "SiglipImageProcessorPil"


def test_a_recipe_that_names_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llm\.family=llama but .* gives toy_lm"):
        recipe(tmp_path, "model.mm_cfg.llm.family=llama")


def test_a_family_that_the_sizes_tell_need_not_be_named() -> None:
    with pytest.raises(ConfigError, match="family=qwen2 is what the sizes of a model tell"):
        load("llava_7b_pretrain", ["model.mm_cfg.llm.family=qwen2"])


def test_a_tower_of_its_own_class_runs_and_is_stored(vision: VisionConfig) -> None:
    tower = VisionTower(vision)
    images = torch.randn(2, 3, 56, 56)
    assert torch.equal(tower(images), tower.model(images).hidden_states[-1][:, 1:])
    shapes = tower_shapes(vision, pooling_head=False)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tower.model.named_parameters()}
    table = tower_table(shapes, stored_tower(vision, LLAVA_HF))
    assert table.hf_names[0] == "vision_tower.summary"
    assert vision_config(vision, torch.float32, False)["model_type"] == "toy_vision_model"


def test_a_connector_is_stored_where_the_layout_allows_it(vision: VisionConfig) -> None:
    module = connector_named("halve2").build(24, 32)
    table = projector_table("halve2", 24, 32, LLAVA_ORIGINAL)
    assert table.hf_names == [f"model.mm_projector.{name}" for name in ("weight", "biases.0", "biases.1")]
    native = {f"projector.{name}": tensor for name, tensor in module.named_parameters()}
    assert set(dict(table.to_native(dict(table.to_hf(native))))) == set(native)
    with pytest.raises(CheckpointError, match="holds projectors of type mlp2x_gelu, this one is halve2"):
        projector_table("halve2", 24, 32, LLAVA_HF)
    assert tokens_per_image(vision, "halve2") == 8


def test_what_no_connector_is_called_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"halve: must be of the form identity, linear, mlp2x_gelu, .*, …, halve1"
    ):
        load("llava_7b_pretrain", ["model.mm_cfg.mm_mlp_adapter_type=halve"])


def test_the_three_make_a_model_whose_tensors_the_planner_knows(
    single_process: None, language: LanguageConfig, vision: VisionConfig
) -> None:
    model = build_model(vision, language, "halve1")
    spec = ModelSpec(vision, language, "halve1", 128, frozenset(("vision_tower", "projector")))
    planned = [weight.shape for weight in stage_weights(spec, Split(tensor=1, pipeline=1, stage=0))]
    assert planned == [tuple(parameter.shape) for parameter in model.parameters()]
    input_ids = torch.tensor([[1] + [IMAGE_TOKEN_ID] * tokens_per_image(vision, "halve1") + [5, 6]])
    assert model(input_ids, torch.randn(1, 3, 56, 56)).shape == (1, input_ids.shape[1], 128)
