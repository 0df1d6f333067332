"""Projections of fewer positions than there are patches.

Dimensions: T tiles, P patches of a tile, R rows of them, H tower width, Q positions, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate


class PixelShuffle(nn.Sequential):
    """Layers over `factor` x `factor` neighbouring patches side by side.

    Source: transformers' Idefics3 and InternVL, whose order of features it is.
    """

    def __init__(self, layers: Sequence[nn.Module], factor: int) -> None:
        super().__init__(*layers)
        self.factor = factor

    def forward(self, features_TPH: Tensor) -> Tensor:
        """Returns [T, Q, D]."""
        tiles, patches, width = features_TPH.shape
        side, factor = math.isqrt(patches), self.factor
        blocks = features_TPH.view(tiles, side // factor, factor, side // factor, factor, width)
        joined = blocks.transpose(2, 3).reshape(tiles, patches // factor**2, factor**2 * width)
        return super().forward(joined)


class Concatenation(nn.Sequential):
    """Layers over `number` patches that follow each other, side by side."""

    def __init__(self, layers: Sequence[nn.Module], number: int) -> None:
        super().__init__(*layers)
        self.number = number

    def forward(self, features_TPH: Tensor) -> Tensor:
        """Returns [T, Q, D]."""
        tiles, patches, width = features_TPH.shape
        return super().forward(features_TPH.reshape(tiles, patches // self.number, self.number * width))


class Bilinear(nn.Sequential):
    """Layers over the map of patches, interpolated to `rows` x `columns`."""

    def __init__(self, layers: Sequence[nn.Module], rows: int, columns: int) -> None:
        super().__init__(*layers)
        self.rows, self.columns = rows, columns

    def forward(self, features_TPH: Tensor) -> Tensor:
        """Returns [T, Q, D]."""
        tiles, patches, width = features_TPH.shape
        side = math.isqrt(patches)
        map_THRR = features_TPH.transpose(1, 2).reshape(tiles, width, side, side)
        smaller = interpolate(map_THRR, (self.rows, self.columns), mode="bilinear", align_corners=False)
        return super().forward(smaller.flatten(2).transpose(1, 2))
