"""Shapes read from a config.json without transformers are those that transformers itself assumes."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.clip import CLIPVisionConfig
from transformers.models.dinov2 import Dinov2Config
from transformers.models.siglip import SiglipVisionConfig

from neva.convert.writers.hf_config import text_config
from neva.errors import ConfigError
from neva.families.language import language_config_from_hf
from neva.families.vision_reading import vision_config_from_hf
from tests import experts
from tests.convert.tiny import FAMILIES, SIZES

CLASSES = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "mixtral": MixtralConfig,
    "qwen2": Qwen2Config,
    "qwen2_moe": Qwen2MoeConfig,
    "qwen3": Qwen3Config,
    "qwen3_moe": Qwen3MoeConfig,
}
TOWERS = {
    "clip_vision_model": CLIPVisionConfig,
    "siglip_vision_model": SiglipVisionConfig,
    "dinov2": Dinov2Config,
}


@pytest.mark.parametrize("model_type", CLASSES)
def test_what_a_partial_config_omits_is_transformers_default(model_type):
    full = CLASSES[model_type]().to_dict()
    assert language_config_from_hf({"model_type": model_type}) == language_config_from_hf(full)


@pytest.mark.parametrize("model_type", TOWERS)
def test_what_a_partial_tower_config_omits_is_transformers_default(model_type):
    full = TOWERS[model_type]().to_dict()
    shape = vision_config_from_hf({"model_type": model_type})
    assert shape == vision_config_from_hf({**full, "model_type": model_type})
    assert shape.model_type == model_type.removesuffix("_vision_model")
    assert shape.class_token_length == (0 if "siglip" in model_type else 1)


@pytest.mark.parametrize("family", [*FAMILIES, *experts.FAMILIES])
def test_written_config_is_read_back_by_us_and_by_transformers(family, tmp_path):
    config_class, _, changes = {**FAMILIES, **experts.FAMILIES}[family]
    shape = language_config_from_hf(config_class(**{**SIZES, **changes}).to_dict())
    written = text_config(shape, torch.bfloat16, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None})
    assert language_config_from_hf(written) == shape
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert language_config_from_hf(AutoConfig.from_pretrained(tmp_path).to_dict()) == shape


def test_rope_theta_is_read_from_both_spellings():
    four = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    five = {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
    }
    assert language_config_from_hf(four) == language_config_from_hf(five)
    assert language_config_from_hf(four).rope_theta == 5e5
    assert language_config_from_hf(four).rope_scaling == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("model_type", ["qwen2", "phi3", "gemma3_text"])
def test_scaling_that_somebody_added_counts_as_in_transformers(model_type, tmp_path):
    """In the older key, as model cards say, to a file that transformers 5 has written."""
    factors = [1.0] * (36 // 6 // 2)
    added = {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e4}
    if model_type == "phi3":
        added = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0}
    config = AutoConfig.for_model(model_type, **{**SIZES, "head_dim": 6}).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_scaling": added}))
    found = language_config_from_hf(json.loads((tmp_path / "config.json").read_text()))
    assert found.rope_scaling is not None
    assert found == language_config_from_hf(AutoConfig.from_pretrained(tmp_path).to_dict())


def test_llava_1_5_of_the_hub_with_its_sparse_text_config():
    config = {
        "model_type": "llava",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "vocab_size": 32064,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": 336,
            "patch_size": 14,
            "hidden_size": 1024,
            "num_attention_heads": 16,
        },
        "vision_feature_layer": -2,
    }
    language, vision = language_config_from_hf(config), vision_config_from_hf(config)
    assert (language.num_layers, language.ffn_hidden_size, language.vocab_size) == (32, 11008, 32064)
    assert (language.num_query_groups, language.head_dim, language.rms_norm_eps) == (32, 128, 1e-5)
    assert (vision.num_tokens, vision.select_layer) == (576, -2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "axial", "factor": 4.0}}, "rope_type is 'axial'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "four"}}, "factor is 'four'"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            "short_factor has 1 numbers, expected 64",
        ),
        ({"model_type": "stablelm", "use_parallel_residual": True}, "use_parallel_residual is True"),
        ({"model_type": "stablelm", "partial_rotary_factor": 0.0125}, "1 of the 80 elements"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"] * 26}, "layer_types is"),
        ({"model_type": "gemma2", "hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok is 9, expected .* 1 to 8"),
        ({"model_type": "mixtral", "router_jitter_noise": 0.1}, "router_jitter_noise is 0.1"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "mlp_only_layers is"),
        ({"model_type": "qwen2_moe", "use_sliding_window": True}, "use_sliding_window is True"),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "max_window_layers": 2,
                "num_hidden_layers": 4,
            },
            "max_window_layers gives a window to 2 of 4",
        ),
    ],
)
def test_other_arithmetic_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        language_config_from_hf({"model_type": "llama", **changes}, "megatron")


def test_a_plan_may_hold_a_model_of_any_configuration():
    scaled = {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert len({language_config_from_hf(scaled), language_config_from_hf({"model_type": "opt"})}) == 2


def test_windows_are_read_as_each_family_means_them():
    assert language_config_from_hf({"model_type": "mistral", "sliding_window": None}).sliding_window is None
    assert language_config_from_hf({"model_type": "mistral"}).sliding_window == 4096
    assert language_config_from_hf({"model_type": "qwen2", "sliding_window": 4096}).sliding_window is None
    windowed = {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "max_window_layers": 0,
        "sliding_window": 64,
    }
    assert language_config_from_hf(windowed).sliding_window == 64
    for kind, found in (("full_attention", None), ("sliding_attention", 64)):  # counts more than a switch
        kinds = {"num_hidden_layers": 4, "max_window_layers": 4, "layer_types": [kind] * 4}
        assert language_config_from_hf({**windowed, **kinds}).sliding_window == found
    with pytest.raises(ConfigError, match="layer_types gives a window to 1 of 2 layers"):
        kinds = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
        language_config_from_hf({**windowed, **kinds})
