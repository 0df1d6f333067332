"""The vision tower: any Hugging Face tower with hidden states.

Dimensions: N images, P tokens per image, H tower width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModel
from transformers.models.siglip import SiglipVisionConfig, SiglipVisionModel

from neva.families.configs import VisionConfig

_TOWERS: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "clip": (CLIPVisionConfig, CLIPVisionModel),
    "siglip": (SiglipVisionConfig, SiglipVisionModel),
}


class VisionTower(nn.Module):
    """Hidden states of one layer of a Hugging Face tower, without its class token.

    Layers behind the selected one are kept, so that the tower can be saved whole, but neither run nor trained.
    """

    def __init__(self, shape: VisionConfig) -> None:
        super().__init__()
        self.model: Any = build_tower(shape)
        self.class_token_length = shape.class_token_length
        self.num_layers_run = num_layers_run(shape)
        self.select_layer = shape.select_layer

    @property
    def has_layers(self) -> bool:
        """Whether the tower is built like CLIP's and SigLIP's, so that layers can be left out."""
        return hasattr(getattr(self.model, "encoder", None), "layers")

    @property
    def used(self) -> list[nn.Module]:
        """The modules that take part in the forward pass."""
        if not self.has_layers:
            return [self.model]
        before = [
            getattr(self.model, name) for name in ("embeddings", "pre_layrnorm") if hasattr(self.model, name)
        ]
        return before + list(self.model.encoder.layers[: self.num_layers_run])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encodes images [N, 3, height, width] to features [N, P, H]."""
        pixel_values = pixel_values.to(self.model.dtype)
        if not self.has_layers:
            states = self.model(pixel_values, output_hidden_states=True).hidden_states
            return states[self.select_layer][:, self.class_token_length :]
        hidden = self.model.embeddings(pixel_values)
        if hasattr(self.model, "pre_layrnorm"):  # CLIP's own spelling
            hidden = self.model.pre_layrnorm(hidden)
        for layer in self.model.encoder.layers[: self.num_layers_run]:
            hidden = layer(hidden, attention_mask=None)
        return hidden[:, self.class_token_length :]


def num_layers_run(shape: VisionConfig) -> int:
    """Returns how many layers stand before the selected hidden state (state 0 is the embedding).

    Raises:
        ValueError: when the tower has no such hidden state.
    """
    states = shape.num_layers + 1
    if not -states <= shape.select_layer < states:
        raise ValueError(
            f"vision_select_layer: found {shape.select_layer}, expected {-states}..{states - 1} for a tower of "
            f"{shape.num_layers} layers"
        )
    return shape.select_layer % states


def build_tower(shape: VisionConfig) -> PreTrainedModel:
    """Builds the tower with random weights, in float32, with SDPA attention.

    Raises:
        ValueError: for a model type that `transformers` has no vision tower for.
    """
    sizes: dict[str, Any] = {
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.ffn_hidden_size,
        "hidden_act": shape.hidden_act,
        "layer_norm_eps": shape.layer_norm_eps,
    }
    if shape.model_type in _TOWERS:
        config_class, model_class = _TOWERS[shape.model_type]
        config = config_class(**sizes)
        config._attn_implementation = "sdpa"
        return model_class(config)
    if shape.ffn_hidden_size % shape.hidden_size == 0:
        sizes["mlp_ratio"] = shape.ffn_hidden_size // shape.hidden_size  # DINOv2's way to say it
    try:
        config = AutoConfig.for_model(shape.model_type, **sizes)
    except ValueError as error:
        raise ValueError(
            f"vision_encoder.model_type: found {shape.model_type!r}, expected 'clip', 'siglip' or a model type of "
            "transformers that has hidden states"
        ) from error
    return AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
