"""Images at the resolution of a list that they fill best, their features laid out as one map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from neva.errors import ConfigError
from neva.families.tiling import TileGrid, Tiling


@dataclass(frozen=True)
class AnyResolution(Tiling):
    """LLaVA-NeXT: the resolution of a list that an image fills best, and the whole image in front (`anyres`)."""

    name: ClassVar[str] = "anyres"
    is_map: ClassVar[bool] = True
    pads: ClassVar[bool] = True

    pinpoints: tuple[tuple[int, ...], ...] | None
    """Height and width of each resolution; None: 1x2, 2x1, 2x2, 3x1 and 1x3 tiles, as LLaVA-NeXT has them."""

    usual: ClassVar[tuple[tuple[int, int], ...]] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    """Rows and columns of the resolutions that null stands for."""

    def shapes(self, tile_size: int) -> list[tuple[int, int]]:
        """Returns rows and columns of each resolution."""
        if self.pinpoints is None:
            return [*self.usual]
        return [(height // tile_size, width // tile_size) for height, width in self.pinpoints]

    def grid(self, width: int, height: int, tile_size: int) -> TileGrid:
        """See `Tiling`. Source of the choice: transformers' `select_best_resolution`."""
        best, most, least_wasted = (0, 0), 0, math.inf
        for rows, columns in self.shapes(tile_size):
            scale = min(columns * tile_size / width, rows * tile_size / height)
            used = min(int(width * scale) * int(height * scale), width * height)
            wasted = rows * columns * tile_size**2 - used
            if used > most or (used == most and wasted < least_wasted):
                best, most, least_wasted = (rows, columns), used, wasted
        if not most:  # a strip that no resolution shows a pixel of
            best = self.shapes(tile_size)[0]
        return TileGrid(*best, "first")

    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """See `Tiling`."""
        return [(columns * tile_size, rows * tile_size) for rows, columns in self.shapes(tile_size)]

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


CAPPED_PATTERN = r"anyres_max_(?P<most>[1-9]\d{0,3})"
"""What `image_aspect_ratio` calls a `CappedResolution`."""


@dataclass(frozen=True)
class CappedResolution(AnyResolution):
    """LLaVA-OneVision: any resolution, with a map of about `most` tiles' features at most (`anyres_max_<most>`).

    Source: transformers' `LlavaOnevisionModel.pack_image_features` (https://arxiv.org/abs/2408.03326).
    """

    name: ClassVar[str] = "anyres_max"
    cuts_one_alone: ClassVar[bool] = True
    pools_frames: ClassVar[bool] = True
    usual: ClassVar[tuple[tuple[int, int], ...]] = tuple(
        (rows, columns) for rows in range(1, 7) for columns in range(1, 7)
    )
    tolerance: ClassVar[float] = 1.1
    """A map stays whose sides would shrink by less than this."""

    most: int

    def reduced(self, rows: int, columns: int, side: int) -> tuple[int, int] | None:
        """See `Tiling`."""
        ratio = math.sqrt(rows * columns / (self.most * side**2))
        if ratio <= self.tolerance:
            return None
        return max(1, int(rows // ratio)), max(1, int(columns // ratio))

    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """See `Tiling`; of grids beyond the cap, the images too that are cropped to as much as stays unreduced."""
        area = self.most * self.tolerance**2
        cropped = [
            shape
            for rows, columns in self.shapes(tile_size)
            if rows * columns > area
            for shape in ((area / rows, rows), (columns, area / columns))
        ]
        sizes = [(int(across * tile_size), int(down * tile_size)) for across, down in cropped]
        return super().fullest(tile_size) + [
            (max(1, width - less), max(1, height - less)) for width, height in sizes for less in range(8)
        ]
