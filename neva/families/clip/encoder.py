"""Towers of CLIP's make: embeddings, `encoder.layers`, and tensors that are known without building them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neva.families.configs import VisionConfig
from neva.families.mapping import Shape
from neva.families.naming import VISION_MODEL
from neva.families.vision import VisionFamily, vision_family

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class EncoderFamily(VisionFamily):
    """A tower of CLIP's make; a family says its tensors and their order in the module."""

    wrapper: str = VISION_MODEL
    before_layers: tuple[str, ...] = ("embeddings", "pre_layrnorm")
    last_norm: str | None = "post_layernorm"
    layers: str | None = "encoder.layers"
    positions: str | None = "embeddings.position_embedding.weight"

    module_order: tuple[str, ...] = ()
    """Prefixes of the tensors in the order in which the built module holds them."""
    layer_order: tuple[str, ...] = ()
    """The same inside a layer."""

    def module_shapes(self, vision: VisionConfig) -> dict[str, Shape]:
        """See `VisionFamily`."""

        def place(name: str) -> tuple[int, int, int]:
            layer = _LAYER.match(name)
            number, rest = (int(layer[1]), name[layer.end() :]) if layer else (0, "")
            return _first(self.module_order, name), number, _first(self.layer_order, rest)

        shapes = self.tensor_shapes(vision, pooling_head=True)
        return {name: shapes[name] for name in sorted(shapes, key=place)}

    def file_names(self, vision: VisionConfig) -> Mapping[str, str]:
        """See `VisionFamily`."""
        return {}

    def write(self, vision: VisionConfig, pooling_head: bool) -> dict[str, Any]:
        """See `VisionFamily`."""
        return {**super().write(vision, pooling_head), "attention_dropout": 0.0}

    def layer_arguments(self, tower: Any, pixel_values: Any) -> dict[str, Any]:
        """See `VisionFamily`."""
        return {"attention_mask": None}


def _first(prefixes: tuple[str, ...], name: str) -> int:
    return next((index for index, prefix in enumerate(prefixes) if name.startswith(prefix)), len(prefixes))


def linear_shapes(name: str, rows: int, columns: int) -> dict[str, Shape]:
    """Returns weight and bias of a linear layer."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm_shapes(name: str, width: int) -> dict[str, Shape]:
    """Returns weight and bias of a layer norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def embedding_shapes(vision: VisionConfig) -> dict[str, Shape]:
    """Returns the patch embedding's weight and the positions of patches and class tokens."""
    hidden, patch = vision.hidden_size, vision.patch_size
    patches = (vision.image_size // patch) ** 2
    positions = patches + vision_family(vision.model_type).class_tokens
    return {
        "embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        "embeddings.position_embedding.weight": (positions, hidden),
    }


def encoder_shapes(vision: VisionConfig) -> dict[str, Shape]:
    """Returns the layers of CLIP's make and the norm behind them."""
    hidden, ffn = vision.hidden_size, vision.ffn_hidden_size
    shapes: dict[str, Shape] = {}
    for layer in range(vision.num_layers):
        prefix = f"encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear_shapes(f"{prefix}self_attn.{part}", hidden, hidden)
        shapes |= norm_shapes(f"{prefix}layer_norm1", hidden) | norm_shapes(f"{prefix}layer_norm2", hidden)
        shapes |= linear_shapes(f"{prefix}mlp.fc1", ffn, hidden)
        shapes |= linear_shapes(f"{prefix}mlp.fc2", hidden, ffn)
    return shapes | norm_shapes("post_layernorm", hidden)
