"""An image of twice the tower's side in views that the tower can see: it at half size, and its four quarters.

Dimensions: N images, V views of them all, P patch features of a view, H tower width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def views_of(pixel_values: Tensor, has_thumbnail: bool) -> Tensor:
    """Returns the views [V, 3, side, side] of images [N, 3, 2 * side, 2 * side].

    With a thumbnail, the images at half size come first, by bicubic interpolation between pixels. Behind them come the
    quarters of each image, row by row.
    """
    side = pixel_values.shape[-1] // 2
    quarters = pixel_values.unflatten(3, (2, side)).unflatten(2, (2, side)).permute(0, 2, 4, 1, 3, 5)
    views = quarters.flatten(0, 2)
    if not has_thumbnail:
        return views
    small = F.interpolate(pixel_values, size=(side, side), mode="bicubic")
    return torch.cat([small, views])


def joined(features_VPH: Tensor, has_thumbnail: bool) -> Tensor:
    """Returns the features of each image: the P of the thumbnail, if any, then the map of its quarters, row by row.

    [N, 5 * P, H] or [N, 4 * P, H].
    """
    views, number, width = features_VPH.shape
    images = views // (4 + has_thumbnail)
    side = math.isqrt(number)
    small_NPH, quarters = features_VPH[: views - 4 * images], features_VPH[views - 4 * images :]
    grid = quarters.reshape(images, 2, 2, side, side, width)
    map_NFH = grid.transpose(2, 3).reshape(images, 4 * number, width)
    return torch.cat([small_NPH, map_NFH], dim=1) if has_thumbnail else map_NFH
