"""A connector's layers with a newline behind the features of each tile.

Dimensions: T tiles, P features of a tile, H tower width, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WithNewline(nn.Sequential):
    """Layers under their own names, and `image_newline` beside them."""

    def __init__(self, layers: nn.Sequential, newline_D: Tensor) -> None:
        super().__init__(*layers)
        self.image_newline = nn.Parameter(newline_D)

    def forward(self, features_TPH: Tensor) -> Tensor:
        """Returns [T, P + 1, D]."""
        projected_TPD = super().forward(features_TPH)
        newline_T1D = self.image_newline.expand(len(projected_TPD), 1, -1)
        return torch.cat([projected_TPD, newline_T1D], dim=1)
