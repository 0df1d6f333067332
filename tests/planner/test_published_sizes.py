"""Parameters that a plan counts, against those that the published checkpoints hold."""

from __future__ import annotations

from typing import Any

import pytest

from neva.families.configs import LanguageConfig
from neva.families.language import exported_family, language_config_from_hf
from neva.families.vision_reading import vision_config_from_hf
from neva.planner.tensors import LANGUAGE, ModelSpec, Split, stage_weights
from tests.published import CLIP

PHI3_MINI = {
    "model_type": "phi3",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
"""The factors themselves change no size."""

PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "stabilityai/stablelm-2-1_6b": (
        1_644_515_328,
        {
            "model_type": "stablelm",
            "vocab_size": 100352,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "layer_norm_eps": 1e-05,
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000,
            "max_position_embeddings": 4096,
            "use_qkv_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        3_821_079_552,
        {**PHI3_MINI, "max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
    ),
    "microsoft/Phi-3-mini-128k-instruct": (
        3_821_079_552,
        {
            **PHI3_MINI,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": LONGROPE,
            "sliding_window": 262144,
        },
    ),
    "microsoft/phi-4": (
        14_659_507_200,
        {
            **PHI3_MINI,
            "vocab_size": 100352,
            "hidden_size": 5120,
            "intermediate_size": 17920,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 10,
            "max_position_embeddings": 16384,
            "original_max_position_embeddings": 16384,
            "rope_theta": 250000,
            "rope_scaling": None,
            "sliding_window": None,
        },
    ),
    "allenai/OLMo-2-1124-7B": (
        7_298_617_344,
        {
            "model_type": "olmo2",
            "vocab_size": 100352,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-06,
            "rope_theta": 500000,
            "tie_word_embeddings": False,
        },
    ),
    "google/gemma-2-2b": (
        2_614_341_888,
        {
            "model_type": "gemma2",
            "vocab_size": 256000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window": 4096,
            "cache_implementation": "hybrid",
            "hidden_act": "gelu_pytorch_tanh",
        },
    ),
    "google/gemma-3-1b-pt": (
        999_885_952,
        {
            "model_type": "gemma3_text",
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
        },
    ),
}


def read(name: str) -> LanguageConfig:
    return language_config_from_hf(PUBLISHED[name][1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_plan_counts_the_parameters_of_the_published_checkpoint(name: str) -> None:
    vision = vision_config_from_hf(CLIP, select_layer=-2)
    model = ModelSpec(vision, read(name), "mlp2x_gelu", 1, frozenset())
    weights = stage_weights(model, Split(tensor=1, pipeline=1, stage=0))
    assert sum(weight.numel for weight in weights if weight.part == LANGUAGE) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_of_it_reads_as_the_same_model(name: str) -> None:
    language = read(name)
    assert language_config_from_hf(exported_family(language).write(language)) == language


def test_what_the_sizes_do_not_say_is_read_from_the_published_files() -> None:
    phi, gemma = read("microsoft/Phi-3-mini-128k-instruct"), read("google/gemma-3-1b-pt")
    assert phi.rope_scaling is not None
    assert (phi.rope_scaling["factor"], phi.rope_scaling["original_max_position_embeddings"]) == (32.0, 4096)
    assert [gemma.window_of(layer) for layer in range(7)] == [512] * 5 + [None, 512]
    assert (gemma.rope_theta, gemma.form.local_rope_theta) == (1e6, 1e4)
    assert read("stabilityai/stablelm-2-1_6b").rotary_dim == 16
