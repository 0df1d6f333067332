"""Tiny language models with experts of transformers, and neva's with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from neva.families.language import read_language_config
from neva.model.build import build_language_model
from neva.model.llava import NevaModel
from neva.weights.load import load_language_model
from tests.convert.tiny import SIZES

QWEN = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 4}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {**QWEN, "head_dim": 10, "norm_topk_prob": True}),
    "qwen3_moe among all": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {**QWEN, "head_dim": 10, "norm_topk_prob": False},
    ),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, {**QWEN, "shared_expert_intermediate_size": 28}),
}


def reference(family: str, folder: Path) -> Any:
    """A model of transformers, saved to `folder` under the hub's names."""
    config, model, changes = FAMILIES[family]
    torch.manual_seed(1)
    made = model(config(**{**SIZES, **changes})).eval()
    with torch.no_grad():  # norms away from ones, and routers from undecided ones
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    return made


def native(folder: Path) -> NevaModel:
    """Neva's model with the weights of a folder."""
    language = read_language_config(folder)
    model = NevaModel(build_language_model(language), None, None).eval()
    load_language_model(model, folder, language)
    return model
