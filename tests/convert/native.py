"""Native models built from Hugging Face configurations, and their logits beside transformers'."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.language import language_config_from_hf
from neva.families.vision_reading import vision_config_from_hf
from neva.model.build import build_model
from neva.model.llava import NevaModel
from tests.convert.tiny import TOWER_SIZES

# Two implementations of the same float32 arithmetic differ by the order of their sums.
TOLERANCE = 1e-5
SEEDS = itertools.count(1)
ANY_TOWER: dict[str, Any] = {"model_type": "clip_vision_model", **TOWER_SIZES}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def shapes_of(config: dict[str, Any], padded: int | None = None) -> tuple[VisionConfig, LanguageConfig]:
    """Shapes of a configuration; a text model gets a tower of no consequence."""
    language = language_config_from_hf(config)
    vision = vision_config_from_hf(config if "vision_config" in config else ANY_TOWER, select_layer=-2)
    return vision, replace(language, padded_vocab_size=padded or language.vocab_size)


def native_model(vision: VisionConfig, language: LanguageConfig, connector: str = "mlp2x_gelu") -> NevaModel:
    """A model whose weights no other has: what is not loaded shows."""
    torch.manual_seed(next(SEEDS))
    return build_model(vision, language, connector).eval()


@torch.no_grad()
def text_logits(model: NevaModel, input_ids: Tensor) -> Tensor:
    return model(input_ids, None)


def random_ids(vocab_size: int, length: int = 40, rows: int = 2) -> Tensor:
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(5))
