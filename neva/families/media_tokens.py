"""How many tiles and positions a medium takes: the one place for data, planner, model, reports and exports.

A medium is an image or a video. The tower sees it as tiles, squares of its own size; the language model as positions,
each of which is one feature that the connector makes of a tile.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from neva.errors import ConfigError
from neva.families.configs import VisionConfig
from neva.families.connector import Connector, connector_named, connector_pattern
from neva.families.own_shapes import NativeShape, WholeImage
from neva.families.tiling import TileGrid, Tiling, View


def tokens_per_image(vision: VisionConfig, connector: str) -> int:
    """Returns the positions of one tile, whose patch features go through a connector of that kind."""
    return connector_named(connector).tokens_out(vision.map_tokens)


class PictureShape(NamedTuple):
    """What the tower sees at once, where pictures differ in shape."""

    height: int
    """Pixels."""
    width: int
    features: int
    """What the connector makes of it, a newline counted."""


@dataclass(frozen=True)
class MediumLayout:
    """What one medium becomes."""

    tiles: int
    """Pictures that the tower sees."""
    tile_tokens: int
    """Features of each that count as positions."""
    has_newline: bool = False
    """Whether the connector gives one feature more for each tile, the newline."""
    grid: TileGrid | None = None
    """How an image is cut; None: a video, whose tiles are frames."""
    window: tuple[int, int, int, int] | None = None
    """First row and that behind the last, first column and that behind the last of the features that are kept of the
    map which all tiles but the first make together. Each row ends with the connector's newline. None: the features of
    all tiles, tile by tile."""
    reduced: tuple[int, int] | None = None
    """Rows and columns that the window, or else the map of each tile, is interpolated to; None: it stays."""
    ends_with_newline: bool = False
    """Whether one newline stands behind the features of all tiles."""

    separator: str | None = None
    """What stands between the placeholders of two tiles, where each has its own; None: the medium has one."""
    views: tuple[View, ...] = ()
    """Each tile by its shape where they differ; none: all are squares of the tower's size."""

    @property
    def pieces(self) -> list[int]:
        """Positions at each placeholder."""
        return [self.tokens] if self.separator is None else [self.tile_tokens] * self.tiles

    @property
    def pictures(self) -> list[PictureShape]:
        """Each tile by its shape and features; none where all tiles are squares."""
        features = self.tile_tokens + self.has_newline
        return [PictureShape(view.height, view.width, features) for view in self.views]

    @property
    def is_plain(self) -> bool:
        """Whether the positions are all features of all tiles, one after the other."""
        return self.window is None and not self.has_newline

    @property
    def tokens(self) -> int:
        """Positions of a sequence that it takes."""
        if self.window is None:
            of_tile = self.tile_tokens if self.reduced is None else self.reduced[0] * self.reduced[1]
            return self.tiles * of_tile + self.ends_with_newline
        top, bottom, left, right = self.window
        rows, columns = self.reduced or (bottom - top, right - left)
        return self.tile_tokens + rows * (columns + 1)


@dataclass(frozen=True)
class MediaRules:
    """What media become in one configuration: the tower's tiles, the connector's features, how images are cut."""

    vision: VisionConfig
    connector: Connector
    tile_size: int
    """Pixels of a tile's side."""
    tile_tokens: int
    """Positions of a tile."""
    has_newline: bool
    """Whether the connector gives one feature more for each tile, the newline."""
    tiling: Tiling
    separates_frames: bool = False
    """Whether a new line stands between two frames of a video."""

    def image(self, width: int, height: int, is_alone: bool = True) -> MediumLayout:
        """Returns what an image of that many pixels becomes, the only one of its record or one of several."""
        if self.tiling.cuts_one_alone and not is_alone:
            return MediumLayout(
                1, self.tile_tokens, self.has_newline, TileGrid(1, 1), ends_with_newline=self.has_newline
            )
        if views := self.tiling.views(width, height, self.tile_size, self.vision.patch_size):
            return self._pictures(views)
        grid = self.tiling.grid(width, height, self.tile_size)
        layout = MediumLayout(grid.tiles, self.tile_tokens, self.has_newline, grid)
        if not self.tiling.is_map:
            return layout
        side = math.isqrt(self.tile_tokens)
        window = top, bottom, left, right = _unpadded(grid, side, width, height)
        return replace(layout, window=window, reduced=self.tiling.reduced(bottom - top, right - left, side))

    def _pictures(self, views: tuple[View, ...]) -> MediumLayout:
        """Returns the layout of pictures, of which there is one, or several that have as many features each."""
        tokens = self.connector.tokens_out(self.vision.num_features(views[0].height, views[0].width))
        separator = None if len(views) == 1 else ""
        grid = TileGrid(1, 1)
        return MediumLayout(len(views), tokens, self.has_newline, grid, separator=separator, views=views)

    def video(self, frames: int) -> MediumLayout:
        """Returns what a video becomes, of which that many frames are taken; a frame is a square and never cut."""
        separator = "\n" if self.separates_frames else None
        side = self.tile_size
        views = (View(side, side, (side, side)),) * frames if self.tiling.keeps_shape else ()
        if self.tiling.pools_frames:
            half = math.ceil(math.isqrt(self.tile_tokens) / 2)
            return MediumLayout(
                frames, self.tile_tokens, self.has_newline, reduced=(half, half), ends_with_newline=True
            )
        return MediumLayout(frames, self.tile_tokens, self.has_newline, separator=separator, views=views)

    @property
    def largest_image(self) -> MediumLayout:
        """What the image becomes that takes most positions."""
        shapes = self.tiling.fullest(self.tile_size)
        return max((self.image(*shape) for shape in shapes), key=lambda layout: layout.tokens)

    @property
    def most_squares(self) -> int:
        """Squares of the tower's size that have as many pixels as the largest image."""
        largest = self.largest_image
        pixels = sum(view.height * view.width for view in largest.views)
        return math.ceil(pixels / self.tile_size**2) if pixels else largest.tiles


def media_rules(
    vision: VisionConfig, connector: str, tiling: Tiling | None = None, separates_frames: bool = False
) -> MediaRules:
    """Returns the rules for a tower, a connector of a kind, and a way to cut images; None: they are not cut.

    Raises:
        ConfigError: the parts do not fit each other.
    """
    kind = connector_named(connector)
    rules = MediaRules(
        vision=vision,
        connector=kind,
        tile_size=vision.image_side,
        tile_tokens=kind.tokens_out(vision.map_tokens),
        has_newline=kind.has_newline,
        tiling=tiling or WholeImage(),
        separates_frames=separates_frames,
    )
    if rules.tiling.is_map and not kind.has_newline:
        raise ConfigError(
            f"model.data.image_aspect_ratio={rules.tiling.name} needs a projector with a learned newline, found "
            f"model.mm_cfg.mm_mlp_adapter_type={connector}: take {_with_newline(connector)}"
        )
    if rules.tiling.is_map and math.isqrt(rules.tile_tokens) ** 2 != rules.tile_tokens:
        raise ConfigError(
            f"model.data.image_aspect_ratio={rules.tiling.name} needs tiles whose features are a square, found "
            f"{rules.tile_tokens} of a tile: take another model.mm_cfg.mm_mlp_adapter_type"
        )
    if rules.tiling.keeps_shape and kind.needs_square:
        raise ConfigError(
            f"model.data.image_aspect_ratio={rules.tiling.name} shows pictures that are no squares, which a projector "
            f"of type {connector} needs: take mlp2x_gelu, or another model.data.image_aspect_ratio"
        )
    if vision.kept_tokens and (kind.needs_square or rules.tiling.is_map):
        raise ConfigError(
            f"model.mm_cfg.mm_mlp_adapter_type={connector} lays the patches of an image out as a map, in which the "
            f"tower's {vision.kept_tokens} leading tokens have no place: raise "
            "model.mm_cfg.vision_encoder.class_token_length by as many"
        )
    if rules.tiling.pools_frames and separates_frames:
        raise ConfigError(
            f"model.data.image_aspect_ratio={rules.tiling.name} puts one newline behind a video: "
            "model.data.sep_token_between_frames must be false"
        )
    rules.tiling.check(vision.side)
    if isinstance(rules.tiling, NativeShape):
        _check_native(vision, kind, rules.tiling)
    _check_quarters(vision, kind, rules.tiling)
    return rules


def _with_newline(connector: str) -> str:
    """Returns the connector of that kind with a newline, or, where there is none, a usual one."""
    wanted = f"{connector}_newline"
    return wanted if re.fullmatch(connector_pattern(), wanted) else "mlp2x_gelu_newline"


def _check_native(vision: VisionConfig, connector: Connector, tiling: NativeShape) -> None:
    """Raises ConfigError when an image may have no patch, or the pictures of one image other numbers of positions."""
    if tiling.shortest_edge < vision.patch_size:
        raise ConfigError(
            f"model.data.shortest_edge={tiling.shortest_edge} is less than the tower's patch of {vision.patch_size} "
            "pixels: raise it"
        )
    if tiling.splits and connector.tokens_out(4) != connector.tokens_out(16):
        raise ConfigError(
            f"model.data.do_image_splitting=true needs a projector that makes as many positions of every picture, "
            f"found model.mm_cfg.mm_mlp_adapter_type={connector.kind}: take a perceiver, or set it to false"
        )


def _check_quarters(vision: VisionConfig, connector: Connector, tiling: Tiling) -> None:
    """Raises ConfigError when the tower sees quarters that the connector does not join, or sees none that it needs."""
    key, kind = "model.mm_cfg.use_image_tile", f"model.mm_cfg.mm_mlp_adapter_type={connector.kind}"
    if vision.image_tiles and connector.quarters == "none":
        raise ConfigError(
            f"{key}=true needs a projector that joins the quarters of an image, found {kind}: take "
            "mlp2x_gelu_downsample or mlp_downsample, or set it to false"
        )
    if connector.quarters == "needed" and not vision.image_tiles:
        raise ConfigError(f"{kind} joins the quarters of an image: set {key}=true")
    if vision.image_tiles and (tiling.cuts or tiling.keeps_shape):
        raise ConfigError(
            f"{key}=true cuts every image into quarters itself: model.data.image_aspect_ratio must be square, pad or "
            "pad_right_bottom, not one that cuts into tiles or keeps shapes"
        )


def _unpadded(grid: TileGrid, side: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the window of the map without what pads an image of that shape.

    Source: transformers' `unpad_image` of LLaVA-NeXT.
    """
    rows, columns = grid.rows * side, grid.columns * side
    if width / height > columns / rows:
        kept = int(round(height * (columns / width), 7))
        padding = (rows - kept) // 2
        return padding, rows - padding, 0, columns
    kept = int(round(width * (rows / height), 7))
    padding = (columns - kept) // 2
    return 0, rows, padding, columns - padding
