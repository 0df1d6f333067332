"""What a way to cut images says: how many rows and columns an image of some shape gets.

The names of the keys that choose one are those of `model.data`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple


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
    """What messages call it: that of `image_aspect_ratio`."""
    cuts: ClassVar[bool] = True
    """Whether there can be more tiles than one."""
    is_map: ClassVar[bool] = False
    """Whether the features of the tiles are laid out as one map, row by row, without what pads the image."""
    keeps_shape: ClassVar[bool] = False
    """Whether the pictures that an image becomes have shapes of their own."""
    pads: ClassVar[bool] = False
    """Whether the image keeps its aspect ratio and is padded; otherwise it is stretched."""
    cuts_one_alone: ClassVar[bool] = False
    """Whether only the one image of a record is cut; each of several is one tile, padded, with a newline behind it."""
    pools_frames: ClassVar[bool] = False
    """Whether the map of each frame of a video is halved, and a newline ends the video."""

    @abstractmethod
    def grid(self, width: int, height: int, tile_size: int) -> TileGrid:
        """Returns the tiles of an image of that many pixels, tiles having `tile_size` on a side."""

    def views(self, width: int, height: int, tile_size: int, patch_size: int) -> tuple[View, ...]:
        """Returns the pictures of an image of that many pixels, where they have shapes of their own; else none."""
        return ()

    @abstractmethod
    def fullest(self, tile_size: int) -> list[tuple[int, int]]:
        """Returns shapes of images, width and height, for each grid one that fills it."""

    def reduced(self, rows: int, columns: int, side: int) -> tuple[int, int] | None:
        """Returns the rows and columns that a map is interpolated to, of tiles with `side` rows; None: it stays."""
        return None

    def check(self, tile_size: int) -> None:  # noqa: B027  (most ways fit every size)
        """Raises ConfigError when there are no tiles of that size."""
