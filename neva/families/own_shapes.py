"""Images as one picture, or in pictures of their own shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from neva.errors import ConfigError
from neva.families.tiling import TileGrid, Tiling, View


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
