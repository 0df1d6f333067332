"""What the media of a resolved `model` section become: positions, tiles, frames, and pixels of files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from omegaconf import DictConfig, OmegaConf

from neva.errors import ConfigError
from neva.families.any_resolution import CAPPED_PATTERN, AnyResolution, CappedResolution
from neva.families.configs import VisionConfig
from neva.families.media_tokens import MediaRules, media_rules
from neva.families.own_shapes import FlexibleShape, KeptShape, NativeShape, WholeImage
from neva.families.tile_grids import DynamicTiles, FixedGrid
from neva.families.tiling import Tiling


def media_rules_of(model_cfg: DictConfig, vision: VisionConfig) -> MediaRules:
    """Returns what media become in a resolved `model` section, or in one that a `.nemo` recorded, with its tower.

    Raises:
        ConfigError: tower, projector and `image_aspect_ratio` do not fit each other.
    """
    separates_frames = bool(model_cfg.data.get("sep_token_between_frames"))
    kind = model_cfg.mm_cfg.mm_mlp_adapter_type
    return media_rules(vision, kind, tiling_of(model_cfg.data), separates_frames)


def tiling_of(data: DictConfig) -> Tiling:
    """Returns how images are cut. Models recorded before there were tiles have none of these keys, and no tiles."""
    kind = data.image_aspect_ratio
    if kind.startswith("anyres"):
        listed = data.image_grid_pinpoints
        pinpoints = None if listed is None else tuple(tuple(size) for size in listed)
        capped = re.fullmatch(CAPPED_PATTERN, kind)
        return (
            AnyResolution(pinpoints) if capped is None else CappedResolution(pinpoints, int(capped["most"]))
        )
    if kind == "dynamic":
        return DynamicTiles(data.min_num_tiles, data.max_num_tiles, data.use_thumbnail)
    if kind == "grid":
        return FixedGrid(data.tile_grid[0], data.tile_grid[1], data.use_thumbnail)
    if kind == "keep":
        return KeptShape()
    if kind == "naflex":
        return FlexibleShape(data.max_num_patches)
    if kind == "native":
        return NativeShape(data.shortest_edge, data.longest_edge, data.do_image_splitting)
    return WholeImage()


@dataclass(frozen=True)
class VideoChoice:
    """The frames of a video that are shown: `num_frames` spread evenly (-1: all), or a single one."""

    num_frames: int
    single: Literal["first", "middle", "last"] | None
    library: Literal["decord", "pyav"]

    @property
    def usual_frames(self) -> int:
        """How many they are, or 1 where each video has its own number."""
        return self.num_frames if self.single is None and self.num_frames > 0 else 1


def video_choice(data: DictConfig) -> VideoChoice | None:
    """Returns how videos are read; None where they are not, as in models recorded before there were such keys.

    Raises:
        ConfigError: no frame of them is.
    """
    if data.get("media_type", "image") != "video":
        return None
    if data.num_frames == 0:
        raise ConfigError(
            "model.data.num_frames=0 shows nothing of a video: give a number, or -1 for all frames"
        )
    return VideoChoice(data.num_frames, data.splice_single_frame, data.video_reader)


def turns_images(model_cfg: DictConfig) -> bool:
    """Whether images are turned by their EXIF orientation; models recorded before there was such a key do not."""
    return bool(OmegaConf.select(model_cfg, "data.exif_transpose"))


def jpeg_decoder_of(model_cfg: DictConfig) -> Literal["pillow", "simplejpeg"]:
    """Returns what decodes JPEG files; models recorded before there was a choice say nothing of it."""
    return OmegaConf.select(model_cfg, "data.jpeg_decoder") or "pillow"
