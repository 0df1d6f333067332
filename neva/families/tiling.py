"""Ways to cut an image into tiles: how many rows and columns an image of some shape gets.

The names of the keys that choose one are those of `model.data`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

from neva.errors import ConfigError


@dataclass(frozen=True)
class TileGrid:
    """Rows and columns of the tiles, and whether the whole image is one more in front of them or behind them."""

    rows: int
    columns: int
    whole: Literal["first", "last"] | None = None

    @property
    def tiles(self) -> int:
        """All tiles, the whole image among them."""
        return self.rows * self.columns + (self.whole is not None)


class View(NamedTuple):
    """A picture of its own shape: what of the image it shows, and how large. All are pixels."""

    height: int
    """Of the whole patches that the tower sees."""
    width: int
    resized: tuple[int, int]
    """Height and width of the resized picture; what of it fills no patch, right and at the bottom, is not seen."""
    box: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of the part of the image; None: all of it."""


class Tiling(ABC):
    """One way to cut images."""

    name: ClassVar[str] = ""
    """What `image_aspect_ratio` calls a way that keeps shapes."""
    cuts: ClassVar[bool] = True
    """Whether there can be more tiles than one."""
    is_map: ClassVar[bool] = False
    """Whether the features of the tiles are laid out as one map, row by row, without what pads the image."""
    keeps_shape: ClassVar[bool] = False
    """Whether the pictures that an image becomes have shapes of their own."""
    pads: ClassVar[bool] = False
    """Whether the image keeps its aspect ratio and is padded; otherwise it is stretched."""

    @abstractmethod
    def grid(self, width: int, height: int, tile_size: int) -> TileGrid:
        """Returns the tiles of an image of that many pixels, tiles having `tile_size` on a side."""

    def views(self, width: int, height: int, tile_size: int, patch_size: int) -> tuple[View, ...]:
        """Returns the pictures of an image of that many pixels, where they have shapes of their own; else none."""
        return ()

    @abstractmethod
    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """Returns shapes of images, width and height, for each grid one that fills it."""

    def check(self, tile_size: int) -> None:  # noqa: B027  (most ways fit every size)
        """Raises ConfigError when there are no tiles of that size."""


@dataclass(frozen=True)
class WholeImage(Tiling):
    """Every image is one tile."""

    cuts: ClassVar[bool] = False

    def grid(self, width: int, height: int, tile_size: int) -> TileGrid:
        """See `Tiling`."""
        return TileGrid(1, 1)

    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """See `Tiling`."""
        return [(tile_size, tile_size)]


@dataclass(frozen=True)
class KeptShape(WholeImage):
    """NeVA: the whole image in its own aspect ratio, without padding and without crop (`keep`)."""

    name: ClassVar[str] = "keep"
    keeps_shape: ClassVar[bool] = True
    longest: ClassVar[int] = 2
    """The long side is at most that many times the tower's (NeVA: 448 pixels for 224)."""

    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """See `Tiling`."""
        return [(self.longest * tile_size, tile_size), (tile_size, self.longest * tile_size)]

    def views(self, width: int, height: int, tile_size: int, patch_size: int) -> tuple[View, ...]:
        """Returns the one picture that an image of that shape becomes, whole patches in both directions.

        The short side is the tower's, or less where the long one would be more than `longest` times as much; both are
        rounded down to whole patches, at least one. Source: NeVA's `keep`, whose convolution passes over what is left
        of a patch.
        """
        short, long = min(width, height), max(width, height)
        scaled_short = max(1, int(min(self.longest * tile_size / (long / short), tile_size)))
        scaled_long = min(int(scaled_short * long / short), self.longest * tile_size)
        short, long = (max(1, side // patch_size) * patch_size for side in (scaled_short, scaled_long))
        shape = (short, long) if height <= width else (long, short)
        return (View(*shape, shape),)


@dataclass(frozen=True)
class NativeShape(WholeImage):
    """Idefics2: the image's own pixels within a shortest and a longest edge, its quarters in front or not (`native`).

    Source: transformers' `Idefics2ImageProcessor`. It pads the pictures of a batch to one shape and masks that; here
    each is what its whole patches hold, which is the same to the tower.
    """

    name: ClassVar[str] = "native"
    keeps_shape: ClassVar[bool] = True

    shortest_edge: int
    longest_edge: int
    splits: bool
    """Whether the four quarters of the image, each enlarged as an image is, are pictures in front of the whole."""

    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """See `Tiling`."""
        return [(2 * self.longest_edge, 2 * self.longest_edge)]

    def views(self, width: int, height: int, tile_size: int, patch_size: int) -> tuple[View, ...]:
        """See `Tiling`."""
        across, down = width // 2, height // 2
        quarters = (
            (0, 0, across, down),
            (across, 0, width, down),
            (0, down, across, height),
            (across, down, width, height),
        )
        boxes = quarters if self.splits and across and down else ()
        return (
            *(self._view(box[2] - box[0], box[3] - box[1], patch_size, box) for box in boxes),
            self._view(width, height, patch_size, None),
        )

    def _view(self, width: int, height: int, patch_size: int, box: tuple[int, int, int, int] | None) -> View:
        ratio = width / height
        if width >= height and width > self.longest_edge:
            width, height = self.longest_edge, int(self.longest_edge / ratio)
        elif height > width and height > self.longest_edge:
            width, height = int(self.longest_edge * ratio), self.longest_edge
        height, width = max(height, self.shortest_edge), max(width, self.shortest_edge)
        return View(height // patch_size * patch_size, width // patch_size * patch_size, (height, width), box)

    def check(self, tile_size: int) -> None:
        """See `Tiling`."""
        if self.shortest_edge > self.longest_edge:
            raise ConfigError(
                f"model.data.shortest_edge={self.shortest_edge} is more than longest_edge={self.longest_edge}; "
                "expected at most as much"
            )


@dataclass(frozen=True)
class FlexibleShape(WholeImage):
    """SigLIP 2 NaFlex: the whole image, as near to its aspect ratio as whole patches come, of a most number (`naflex`).

    Source: transformers' `Siglip2ImageProcessor`; small images are enlarged, up to `largest` times.
    """

    name: ClassVar[str] = "naflex"
    keeps_shape: ClassVar[bool] = True
    largest: ClassVar[float] = 100.0
    precision: ClassVar[float] = 1e-5
    """Of the factor by which images are resized."""

    max_num_patches: int

    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """See `Tiling`. A strip has as many patches as there may be."""
        return [(self.max_num_patches * tile_size, tile_size)]

    def views(self, width: int, height: int, tile_size: int, patch_size: int) -> tuple[View, ...]:
        """Returns the one picture that an image becomes: the largest factor is found by halving, sides rounded up."""

        def patches(factor: float) -> tuple[int, int]:
            rows, columns = (max(1, math.ceil(edge * factor / patch_size)) for edge in (height, width))
            return rows, columns

        low, high = self.precision / 10, self.largest
        while high - low >= self.precision:
            middle = (low + high) / 2
            rows, columns = patches(middle)
            low, high = (middle, high) if rows * columns <= self.max_num_patches else (low, middle)
        rows, columns = patches(low)
        shape = (rows * patch_size, columns * patch_size)
        return (View(*shape, shape),)


@dataclass(frozen=True)
class AnyResolution(Tiling):
    """LLaVA-NeXT: the resolution of a list that an image fills best, and the whole image in front (`anyres`)."""

    is_map: ClassVar[bool] = True
    pads: ClassVar[bool] = True

    pinpoints: tuple[tuple[int, ...], ...] | None
    """Height and width of each resolution; None: 1x2, 2x1, 2x2, 3x1 and 1x3 tiles, as LLaVA-NeXT has them."""

    def _shapes(self, tile_size: int) -> list[tuple[int, int]]:
        """Returns rows and columns of each resolution."""
        if self.pinpoints is None:
            return [*_LLAVA_NEXT]
        return [(height // tile_size, width // tile_size) for height, width in self.pinpoints]

    def grid(self, width: int, height: int, tile_size: int) -> TileGrid:
        """See `Tiling`. Source of the choice: transformers' `select_best_resolution`."""
        best, most, least_wasted = (0, 0), 0, math.inf
        for rows, columns in self._shapes(tile_size):
            scale = min(columns * tile_size / width, rows * tile_size / height)
            used = min(int(width * scale) * int(height * scale), width * height)
            wasted = rows * columns * tile_size**2 - used
            if used > most or (used == most and wasted < least_wasted):
                best, most, least_wasted = (rows, columns), used, wasted
        if not most:  # a strip that no resolution shows a pixel of
            best = self._shapes(tile_size)[0]
        return TileGrid(*best, "first")

    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """See `Tiling`."""
        return [(columns * tile_size, rows * tile_size) for rows, columns in self._shapes(tile_size)]

    def check(self, tile_size: int) -> None:
        """See `Tiling`."""
        if self.pinpoints == ():
            raise ConfigError(
                "model.data.image_grid_pinpoints is empty, expected null or a list of height, width"
            )
        for resolution in self.pinpoints or ():
            if len(resolution) != 2 or any(edge <= 0 or edge % tile_size for edge in resolution):
                raise ConfigError(
                    f"model.data.image_grid_pinpoints has {list(resolution)}, expected height and width, "
                    f"multiples of the tower's image_size {tile_size}"
                )


_LLAVA_NEXT = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


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
