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
from neva.families.vision import num_layers_run, vision_family
from neva.registry import VISION_FAMILIES


class VisionTower(nn.Module):
    """Selected hidden states of a Hugging Face tower, joined, without their leading tokens that are no patches.

    Layers behind the selected one are kept, so that the tower can be saved whole, but neither run nor trained.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.family = vision_family(config.model_type)
        num_layers_run(config)  # raises when there is no such hidden state
        if config.model_type not in VISION_FAMILIES:
            check_tokens(self.family, config)
        self.model: Any = self.family.build(config)

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
        """Encodes images [N, 3, height, width] of any one size to features [N, P, H]."""
        states = self.family.hidden_states(self.model, pixel_values.to(self.model.dtype), self.config)
        if self.config.post_layernorm:
            states = [self.family.normalised(self.model, hidden) for hidden in states]
        return torch.cat([hidden[:, self.config.class_token_length :] for hidden in states], dim=-1)
