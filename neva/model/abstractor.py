"""Honeybee's C-Abstractor (https://arxiv.org/abs/2312.06742): RegNet blocks, a smaller map, RegNet blocks, a readout.

Dimensions: T tiles, P patches of a tile, R rows of them, H tower width, C channels, Q positions, D hidden.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, silu

EPSILON = 1e-6


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of a map [T, C, R, R]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPSILON)

    def forward(self, map_TCRR: Tensor) -> Tensor:
        """Returns a map of the same shape."""
        return super().forward(map_TCRR.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RegBlock(nn.Module):
    """A bottleneck of RegNet-Y: 1 x 1, 3 x 3 of each channel alone, squeeze and excitation, 1 x 1, and a shortcut."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.expand, self.expand_norm = _convolution(inputs, width), ChannelNorm(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.depthwise_norm = ChannelNorm(width)
        self.reduce, self.reduce_norm = _convolution(width, width), ChannelNorm(width)
        squeezed = round(inputs * 0.25)
        self.squeeze, self.excite = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.has_shortcut = inputs != width
        if self.has_shortcut:
            self.shortcut, self.shortcut_norm = _convolution(inputs, width), ChannelNorm(width)

    def forward(self, map_TCRR: Tensor) -> Tensor:
        """Returns a map of `width` channels."""
        hidden = silu(self.expand_norm(self.expand(map_TCRR)))
        hidden = silu(self.depthwise_norm(self.depthwise(hidden)))
        mean = hidden.mean((2, 3), keepdim=True)
        hidden = hidden * self.excite(silu(self.squeeze(mean))).sigmoid()
        hidden = self.reduce_norm(self.reduce(hidden))
        kept = self.shortcut_norm(self.shortcut(map_TCRR)) if self.has_shortcut else map_TCRR
        return silu(hidden + kept)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


class Abstractor(nn.Module):
    """The map of patches, made `positions` large between `depth` blocks and as many."""

    def __init__(
        self, vision_hidden_size: int, hidden_size: int, positions: int, depth: int, width: int
    ) -> None:
        super().__init__()
        self.side = math.isqrt(positions)
        self.before = nn.Sequential(
            *(RegBlock(width if n else vision_hidden_size, width) for n in range(depth))
        )
        self.after = nn.Sequential(*(RegBlock(width, width) for _ in range(depth)))
        self.readout = nn.Sequential(
            nn.Linear(width, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, features_TPH: Tensor) -> Tensor:
        """Returns [T, Q, D]."""
        tiles, patches, width = features_TPH.shape
        side = math.isqrt(patches)
        map_THRR = features_TPH.transpose(1, 2).reshape(tiles, width, side, side)
        smaller = self.after(adaptive_avg_pool2d(self.before(map_THRR), (self.side, self.side)))
        projected: Tensor = self.readout(smaller.flatten(2).transpose(1, 2))
        return projected
