"""Images cut by a grid whose tiles stand by themselves, a thumbnail behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from neva.errors import ConfigError
from neva.families.tiling import TileGrid, Tiling


@dataclass(frozen=True)
class DynamicTiles(Tiling):
    """InternVL and Megatron-LM: as many tiles as come closest to the aspect ratio, a thumbnail behind (`dynamic`)."""

    min_tiles: int
    max_tiles: int
    use_thumbnail: bool

    def grid(self, width: int, height: int, tile_size: int) -> TileGrid:
        """See `Tiling`. Of grids that come equally close, the largest is taken that the image is not too small for."""
        best, smallest = (1, 1), math.inf
        for rows, columns in _grids(self.min_tiles, self.max_tiles):
            difference = abs(width / height - columns / rows)
            fills = width * height > 0.5 * tile_size**2 * rows * columns
            if difference < smallest or (difference == smallest and fills):
                best, smallest = (rows, columns), difference
        return _with_thumbnail(*best, self.use_thumbnail)

    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """See `Tiling`."""
        grids = _grids(self.min_tiles, self.max_tiles)
        return [(columns * tile_size, rows * tile_size) for rows, columns in grids]

    def check(self, tile_size: int) -> None:
        """See `Tiling`."""
        if self.min_tiles > self.max_tiles:
            raise ConfigError(
                f"model.data.min_num_tiles={self.min_tiles} is more than max_num_tiles={self.max_tiles}; "
                "expected at most as many"
            )


@dataclass(frozen=True)
class FixedGrid(Tiling):
    """So many rows and columns whatever the image, and the whole image behind them (`grid`)."""

    rows: int
    columns: int
    use_thumbnail: bool

    def grid(self, width: int, height: int, tile_size: int) -> TileGrid:
        """See `Tiling`."""
        return _with_thumbnail(self.rows, self.columns, self.use_thumbnail)

    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """See `Tiling`."""
        return [(self.columns * tile_size, self.rows * tile_size)]


@lru_cache(maxsize=8)
def _grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """Returns rows and columns of all grids of that many tiles, small ones and narrow ones first."""
    return tuple(sorted(_shapes(least, most), key=lambda shape: (shape[0] * shape[1], shape[1])))


def _shapes(least: int, most: int) -> Iterator[tuple[int, int]]:
    for rows in range(1, most + 1):
        for columns in range(1, most // rows + 1):
            if rows * columns >= least:
                yield rows, columns


def _with_thumbnail(rows: int, columns: int, use_thumbnail: bool) -> TileGrid:
    return TileGrid(rows, columns, "last" if use_thumbnail and rows * columns > 1 else None)
