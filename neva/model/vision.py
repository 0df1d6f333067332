"""The vision tower: any Hugging Face tower with hidden states.

Dimensions: N images, P tokens per image, H tower width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from neva.families.configs import VisionConfig
from neva.families.vision import num_layers_run, vision_family


class VisionTower(nn.Module):
    """Hidden states of one layer of a Hugging Face tower, without its class token.

    Layers behind the selected one are kept, so that the tower can be saved whole, but neither run nor trained.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
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
        """Encodes images [N, 3, height, width] of any one size to features [N, P, H]."""
        hidden = self.family.hidden_state(self.model, pixel_values.to(self.model.dtype), self.config)
        return hidden[:, self.config.class_token_length :]
