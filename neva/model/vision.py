"""The vision tower: any Hugging Face tower with hidden states.

Dimensions: N images, P tokens per image, H width of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from neva.families.built_tower import check_tokens
from neva.families.configs import VisionConfig
from neva.families.naming import TOWER
from neva.families.tower_adapters import tower_sites
from neva.families.vision import vision_family
from neva.families.vision_sizes import num_layers_run
from neva.model.quarters import joined, views_of
from neva.model.whole_adapters import adapt
from neva.registry import VISION_FAMILIES


class VisionTower(nn.Module):
    """Selected hidden states of a Hugging Face tower, joined, without their leading tokens that are no patches.

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
        if config.model_type not in VISION_FAMILIES:
            check_tokens(self.family, config)
        self.model: Any = self.family.build(config)
        adapt(self.model, tower_sites(config), config.lora, TOWER)

    def used_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the parameters that take part in the forward pass."""
        for name, parameter in self.model.named_parameters():
            if self.family.is_used(name, self.config):
                yield parameter

    @property
    def blocks(self) -> list[nn.Module]:
        """The modules that FSDP may shard one by one."""
        return self.family.blocks(self.model)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encodes images [N, 3, height, width] of any one size to features [N, P, H]; quarters lie as `joined` says."""
        if self.config.recolour is not None:
            scale, shift = (pixel_values.new_tensor(each).view(3, 1, 1) for each in self.config.recolour)
            pixel_values = pixel_values * scale + shift
        if self.config.image_tiles:
            features = self._encode(views_of(pixel_values, self.has_thumbnail))
            return joined(features, self.has_thumbnail)
        return self._encode(pixel_values)

    def _encode(self, pixel_values: Tensor) -> Tensor:
        """Encodes pictures as the tower sees them."""
        states = self.family.hidden_states(self.model, pixel_values.to(self.model.dtype), self.config)
        if self.config.post_layernorm:
            states = [self.family.normalised(self.model, hidden) for hidden in states]
        return torch.cat([hidden[:, self.config.class_token_length :] for hidden in states], dim=-1)
