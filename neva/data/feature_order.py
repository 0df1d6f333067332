"""Where the features of tiles stand in a sequence: copied, or interpolated between those of neighbouring patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from neva.families.media_tokens import MediumLayout

Order: TypeAlias = npt.NDArray[Any]
"""int64 [positions, 2] or float64 [positions, 4, 3], see `order_of`."""


@lru_cache(maxsize=1024)
def order_of(layout: MediumLayout) -> Order:
    """Returns which features stand at each position of a medium; read only.

    [tokens, 2], the tile and the feature of it; where features are interpolated [tokens, 4, 3], the tile, the feature
    and the weight of each of the four that a position is a sum of.
    """
    if layout.window is not None:
        whole = _in_their_order(1, layout.tile_tokens)
        return joined([whole, _map(layout, layout.window)])
    side = math.isqrt(layout.tile_tokens)
    if layout.reduced is None:
        order: Order = _in_their_order(layout.tiles, layout.tile_tokens)
    else:
        rows, columns, weights = bilinear((side, side), layout.reduced)
        tile = np.arange(layout.tiles)[:, None, None]
        order = _mixed(*np.broadcast_arrays(tile, rows * side + columns, weights))
    if not layout.ends_with_newline:
        return order
    return joined([order, np.array([[layout.tiles - 1, layout.tile_tokens]])])


def _in_their_order(tiles: int, tokens: int) -> npt.NDArray[np.int64]:
    return np.indices((tiles, tokens)).reshape(2, -1).T.copy()


def _map(layout: MediumLayout, window: tuple[int, int, int, int]) -> Order:
    """Returns the order of the window of the map that all tiles but the first make, a newline behind each row."""
    assert layout.grid is not None
    top, bottom, left, right = window
    side, across = math.isqrt(layout.tile_tokens), layout.grid.columns
    if layout.reduced is None:
        rows, columns = np.mgrid[top:bottom, left : right + 1]
        # The newline stands behind the features of every tile; a row ends with that of the tile at its end.
        tile = 1 + rows // side * across + np.minimum(columns, max(right - 1, 0)) // side
        feature = np.where(columns < right, rows % side * side + columns % side, layout.tile_tokens)
        return np.stack([tile, feature], axis=-1).reshape(-1, 2)
    rows, columns, weights = bilinear((bottom - top, right - left), layout.reduced)
    rows, columns = rows + top, columns + left
    tile = 1 + rows // side * across + columns // side
    mixed = _mixed(tile, rows % side * side + columns % side, weights).reshape(*layout.reduced, 4, 3)
    newline = np.zeros((layout.reduced[0], 1, 4, 3))
    newline[:, 0, :, 0] = tile.reshape(*layout.reduced, 4)[:, -1]
    newline[..., 1] = layout.tile_tokens
    newline[:, 0, 0, 2] = 1.0
    return np.concatenate([mixed, newline], axis=1).reshape(-1, 4, 3)


def bilinear(
    size: tuple[int, int], target: tuple[int, int]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns row, column and weight of the four places [rows * columns, 4] that each of a smaller map lies between.

    Source: torch's `interpolate(mode="bilinear", align_corners=False)`, whose arithmetic is in float32.
    """
    (low_row, high_row, down), (low_column, high_column, right) = map(_between, size, target)
    rows = np.stack([low_row, low_row, high_row, high_row], axis=-1)[:, None]
    columns = np.stack([low_column, high_column, low_column, high_column], axis=-1)[None]
    one = np.float32(1)
    of_rows = np.stack([one - down, one - down, down, down], axis=-1)[:, None]
    of_columns = np.stack([one - right, right, one - right, right], axis=-1)[None]
    found = np.broadcast_arrays(rows, columns, of_rows * of_columns)
    return found[0].reshape(-1, 4), found[1].reshape(-1, 4), found[2].reshape(-1, 4)


def _between(size: int, target: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns of each of `target` places the two among `size` that it lies between, and the share of the second."""
    half = np.float32(0.5)
    at = np.float32(size) / np.float32(target) * (np.arange(target, dtype=np.float32) + half) - half
    at = np.maximum(at, np.float32(0))
    low = at.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def _mixed(
    tile: npt.NDArray[Any], feature: npt.NDArray[Any], weight: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Returns [positions, 4, 3] of tiles, features and weights whose last dim has four."""
    return np.stack([tile, feature, weight], axis=-1).astype(np.float64).reshape(-1, 4, 3)


def joined(orders: Sequence[Order]) -> Order:
    """Returns orders one behind the other: all as sums of four, if one of them is."""
    if all(order.ndim == 2 for order in orders):
        return np.concatenate(orders)
    return np.concatenate([order if order.ndim == 3 else _as_mixed(order) for order in orders])


def _as_mixed(order: Order) -> npt.NDArray[np.float64]:
    """Returns an order of features that are copied as sums of one, and three with no weight."""
    mixed = np.zeros((len(order), 4, 3))
    mixed[:, :, :2] = order[:, None]
    mixed[:, 0, 2] = 1.0
    return mixed
