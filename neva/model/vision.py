"""The vision tower: any Hugging Face tower with hidden states.

Dimensions: N images, P tokens per image, H tower width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from neva.families.configs import VisionConfig
from neva.families.vision import num_layers_run, vision_family
from neva.model.quarters import joined, views_of


class VisionTower(nn.Module):
    """Hidden states of one layer of a Hugging Face tower, without its class token.

    Layers behind the selected one are kept, so that the tower can be saved whole, but neither run nor trained.

    Args:
        config: its sizes, and whether it sees the quarters of images of twice its side.
        has_thumbnail: with quarters, whether it sees the image at half size too.
    """

    def __init__(self, config: VisionConfig, has_thumbnail: bool = False) -> None:
        super().__init__()
        self.config, self.has_thumbnail = config, has_thumbnail
        self.family = vision_family(config.model_type)
        num_layers_run(config)  # raises when there is no such hidden state
        self.model: Any = self.family.build(config)

    @property
    def used(self) -> list[nn.Module]:
        """The modules that take part in the forward pass."""
        modules = self.family.modules_run(self.model, self.config)
        return [self.model] if modules is None else modules

    @property
    def blocks(self) -> list[nn.Module]:
        """The modules that FSDP may shard one by one."""
        return self.family.blocks(self.model)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encodes images [N, 3, height, width] to features [N, P, H]; quarters of them lie as `joined` says."""
        if self.config.image_tiles:
            features = self._encode(views_of(pixel_values, self.has_thumbnail))
            return joined(features, self.has_thumbnail)
        return self._encode(pixel_values)

    def _encode(self, pixel_values: Tensor) -> Tensor:
        """Encodes pictures of the tower's side."""
        pixel_values = pixel_values.to(self.model.dtype)
        modules = self.family.modules_run(self.model, self.config)
        if modules is None:
            states = self.model(pixel_values, output_hidden_states=True).hidden_states
            return states[self.config.select_layer][:, self.config.class_token_length :]
        layers = set(self.blocks)
        hidden = pixel_values
        for module in modules:
            hidden = module(hidden, attention_mask=None) if module in layers else module(hidden)
        return hidden[:, self.config.class_token_length :]
