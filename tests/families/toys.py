"""A language family, a tower and a connector that are none of neva's own; a test registers them while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.connector import Connector
from neva.families.llama.config import LLAMA_DEFAULTS, LlamaFamily
from neva.families.mapping import Rename, Rule, Shape, Table
from neva.families.naming import HFNaming
from neva.families.vision import VisionFamily
from neva.registry import Registry

KEYS = {"n_vocab": "vocab_size", "n_embd": "hidden_size", "n_layer": "num_hidden_layers"}
NAMES = {"embed_tokens": "wte", "layers.": "h.", "self_attn": "attn", "model.norm": "model.ln_f"}


@contextmanager
def registered(registry: Registry[Any], name: str, member: Any) -> Iterator[Any]:
    """Registers a member until the end of the block."""
    registry.names()
    before = dict(registry._members)
    try:
        yield registry.register(name, member)
    finally:
        registry._members = before


def other_name(name: str) -> str:
    for llama, toy in NAMES.items():
        name = name.replace(llama, toy)
    return name


def renamed(rule: Any) -> Rule:
    if isinstance(rule, Rename):
        return replace(rule, hf_name=other_name(rule.hf_name))
    if hasattr(rule, "hf_name"):
        tied = rule.tied_head and other_name(rule.tied_head)
        return replace(rule, hf_name=other_name(rule.hf_name), tied_head=tied)
    return replace(rule, hf=tuple(map(other_name, rule.hf)))


class ToyFamily(LlamaFamily):
    """LLaMA's arithmetic under other keys and other tensor names."""

    def read(self, config: Mapping[str, Any]) -> LanguageConfig:
        return super().read({KEYS.get(key, key): value for key, value in config.items()})

    def write(self, language: LanguageConfig) -> dict[str, Any]:
        back = {theirs: ours for ours, theirs in KEYS.items()}
        return {back.get(key, key): value for key, value in super().write(language).items()}

    def table(self, language: LanguageConfig, naming: HFNaming, hf_rows: int, fill_row: int) -> Table:
        table = super().table(language, naming, hf_rows, fill_row)
        return replace(table, rules=tuple(renamed(rule) for rule in table.rules))


TOY_LANGUAGE = ToyFamily("toy_lm", "ToyForCausalLM", LLAMA_DEFAULTS, head="unembed.weight")


class ToyVisionConfig(PretrainedConfig):
    model_type = "toy_vision_model"

    def __init__(
        self,
        image_size: int = 28,
        patch_size: int = 14,
        hidden_size: int = 24,
        num_hidden_layers: int = 2,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.image_size, self.patch_size = image_size, patch_size
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers


class ToyVisionModel(PreTrainedModel):
    """Patches through linear layers; the first hidden state has a class token in front."""

    config_class = ToyVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ToyVisionConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.summary = nn.Parameter(torch.ones(1, 1, config.hidden_size))
        self.mixers = nn.ModuleList(
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(self, pixel_values: Tensor, **others: Any) -> SimpleNamespace:
        hidden = self.patches(pixel_values).flatten(2).transpose(1, 2)
        states = [torch.cat([self.summary.expand(len(hidden), 1, -1), hidden], dim=1)]
        for mixer in self.mixers:
            states.append(mixer(states[-1]).tanh())
        return SimpleNamespace(last_hidden_state=states[-1], hidden_states=tuple(states))


@dataclass(frozen=True)
class ToyTower(VisionFamily):
    def build(self, vision: VisionConfig) -> ToyVisionModel:
        return ToyVisionModel(
            ToyVisionConfig(vision.image_size, vision.patch_size, vision.hidden_size, vision.num_layers)
        )


TOY_TOWER = ToyTower(
    "toy_tower",
    {
        "num_attention_heads": 1,
        "intermediate_size": 24,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "patch_size": 14,
    },
    class_tokens=1,
    exported_type="toy_vision_model",
    image_processor="SiglipImageProcessor",
)


@dataclass(frozen=True)
class HalvingConnector(Connector):
    """Two neighbouring patches become one position: `halve<N>` puts N biases behind the projection."""

    forms = ("halve1", "…")

    @property
    def biases(self) -> int:
        return int(self.kind.removeprefix("halve"))

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        return Halving(vision_hidden_size, hidden_size, self.biases)

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        biases = {f"biases.{number}": (hidden_size,) for number in range(self.biases)}
        return {"weight": (hidden_size, 2 * vision_hidden_size), **biases}

    def tokens_out(self, tokens_in: int) -> int:
        return tokens_in // 2


class Halving(nn.Module):
    def __init__(self, vision_hidden_size: int, hidden_size: int, biases: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden_size, 2 * vision_hidden_size) / 10)
        self.biases = nn.ParameterList(torch.zeros(hidden_size) for _ in range(biases))

    def forward(self, features: Tensor) -> Tensor:
        pairs = features.reshape(len(features), features.shape[1] // 2, -1)
        return nn.functional.linear(pairs, self.weight, sum(self.biases))
