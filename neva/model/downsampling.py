"""The modules of the downsampling connectors.

Dimensions: N images, F features of an image's map, row by row, H tower width, D hidden, P positions of an image;
h and w rows and columns of the map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Squares(nn.Module):
    """The features of each 2 x 2 square behind each other; an odd side is filled up with zeros.

    Squares come column by column, as NeMo's NeVA and VILA have them, so that their weights mean the same; the four
    features of one come row by row.
    """

    def forward(self, features_NFH: Tensor) -> Tensor:
        """Returns [N, P, 4 * H]."""
        side, width = math.isqrt(features_NFH.shape[1]), features_NFH.shape[2]
        map_NhwH = F.pad(features_NFH.unflatten(1, (side, side)), (0, 0, 0, side % 2, 0, side % 2))
        half = map_NhwH.shape[1] // 2
        squares = map_NhwH.reshape(-1, half, 2, half, 2, width).permute(0, 3, 1, 2, 4, 5)
        return squares.reshape(-1, half * half, 4 * width)


class AddedQuarters(nn.Module):
    """`layers(small + alpha * downsample(map))`: of an image at half size, and of the map of its quarters.

    `alpha` begins at 0: a model that was trained without quarters goes on from where it is.
    """

    def __init__(self, layers: nn.Sequential, width: int) -> None:
        super().__init__()
        self.depth = len(layers)
        for name, layer in layers.named_children():
            self.add_module(name, layer)
        self.downsample = nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1)
        self.alpha = nn.Parameter(torch.zeros(1))  # FSDP shards no scalars

    def forward(self, features_NFH: Tensor) -> Tensor:
        """Returns [N, P, D] of the P features of the small image and, behind them, the 4 P of the map."""
        number = features_NFH.shape[1] // 5
        small_NPH, map_NFH = features_NFH.split([number, 4 * number], dim=1)
        side = math.isqrt(4 * number)
        map_NHhw = map_NFH.transpose(1, 2).unflatten(2, (side, side))
        down_NPH = self.downsample(map_NHhw).flatten(2).transpose(1, 2)
        hidden = small_NPH + self.alpha * down_NPH
        for layer in range(self.depth):
            hidden = self.get_submodule(str(layer))(hidden)
        return hidden
