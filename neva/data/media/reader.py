"""Media as the tower and the sequence need them, for training and inference alike.

Dimensions: T tiles of a medium, H and W pixels of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from neva.config.media import VideoChoice, jpeg_decoder_of, media_rules_of, turns_images, video_choice
from neva.data.media.image import image_size, load_image, require_file
from neva.data.media.jpeg import JpegDecoder, available
from neva.data.media.placeholders import ImageInput, Medium
from neva.data.media.processor import (
    AspectRatio,
    ImageProcessor,
    enlarged,
    to_pixels,
    to_tile_pixels,
    to_view_pixels,
)
from neva.data.media.video import chosen_frames, frame_count, read_frames, require_library
from neva.errors import SampleError
from neva.families.configs import VisionConfig
from neva.families.media_tokens import MediaRules, MediumLayout
from neva.families.tiling import TileGrid, View


@dataclass(frozen=True)
class MediaReader:
    """Reads the media of records and prompts by the rules of one configuration."""

    rules: MediaRules
    processor: ImageProcessor
    aspect_ratio: AspectRatio
    exif_transpose: bool
    video: VideoChoice | None
    """None: videos are not read."""
    jpeg_decoder: JpegDecoder = "pillow"

    def layout(self, medium: Medium) -> MediumLayout:
        """Returns what a medium becomes, decoding nothing; its file is opened where its size or length matters.

        Raises:
            SampleError: there is no such file, or it is of another kind; a video where none are read.
            DataError: this machine cannot read it.
            ConfigError: the library that reads videos is missing.
        """
        source = medium.source
        if medium.kind == "video":
            return self.rules.video(self._num_frames(source))
        if not (self.rules.tiling.cuts or self.rules.tiling.keeps_shape):
            return self.rules.image(self.rules.tile_size, self.rules.tile_size)
        size = image_size(source, self.exif_transpose) if not isinstance(source, Image.Image) else source.size
        return self.rules.image(*size, medium.is_alone)

    def require(self, medium: Medium) -> None:
        """Raises what `pixels` would, as far as that is seen without decoding."""
        if not isinstance(medium.source, Image.Image):
            require_file(medium.source, medium.kind)

    def pixels(self, medium: Medium, layout: MediumLayout) -> Tensor:
        """Returns the pixels [T, 3, H, W] of a medium that has this layout; all in one row where media differ in shape.

        Raises:
            SampleError: the file is missing or broken.
            DataError: this machine cannot read it.
        """
        source = medium.source
        if medium.kind == "video":
            return torch.cat([self._whole(frame) for frame in self._frames(source)])
        image = self.image(source)
        if layout.views:
            return torch.cat([to_view_pixels(image, self.processor, view).flatten() for view in layout.views])
        if layout.ends_with_newline:  # one of several, whole and padded
            return to_pixels(image, self.processor, "pad")[None]
        if not self.rules.tiling.cuts:
            return self._whole(image)
        assert layout.grid is not None
        return self._tiles(image, layout.grid, self.rules.tiling.pads)

    def image(self, source: ImageInput) -> Image.Image:
        """Returns an image as it is before it is resized or cut; raises as `pixels`."""
        if isinstance(source, Image.Image):
            return source.convert("RGB")
        return load_image(source, self.exif_transpose, self.jpeg_decoder)

    @property
    def usual_frames(self) -> int:
        """How many frames a video becomes, 1 where each has its own number."""
        return 1 if self.video is None else self.video.usual_frames

    def no_pixels(self) -> Tensor:
        """Returns the pixels [0, 3, H, W] of a sample without media; [0] where media differ in shape."""
        if self.rules.tiling.keeps_shape:
            return torch.empty(0)
        return torch.empty(0, 3, self.rules.tile_size, self.rules.tile_size)

    def _whole(self, image: Image.Image) -> Tensor:
        """Returns the pixels of an image as one tile; in a grid, the whole image has the same."""
        if self.rules.tiling.keeps_shape:
            side = self.rules.tile_size
            return to_view_pixels(image, self.processor, View(side, side, (side, side))).flatten()
        if self.rules.tiling.cuts:
            return self._tiles(image, TileGrid(1, 1), pads=False)
        return to_pixels(image, self.processor, self.aspect_ratio)[None]

    def _tiles(self, image: Image.Image, grid: TileGrid, pads: bool) -> Tensor:
        return to_tile_pixels(image, self.processor, grid, self.rules.tile_size, pads)

    def _num_frames(self, path: ImageInput) -> int:
        if self.video is None:
            raise SampleError("there is a video: set model.data.media_type=video to read it", "video")
        assert isinstance(path, Path)
        require_library(self.video.library)
        if self.video.single is not None:
            return 1
        return self.video.num_frames if self.video.num_frames > 0 else frame_count(path, self.video.library)

    def _frames(self, path: ImageInput) -> Iterator[Image.Image]:
        choice = self.video
        assert choice is not None and isinstance(path, Path)
        count = frame_count(path, choice.library)
        return read_frames(path, chosen_frames(count, choice.num_frames, choice.single), choice.library)


def build_media_reader(model_cfg: DictConfig, vision: VisionConfig, processor: ImageProcessor) -> MediaReader:
    """Builds the reader of a resolved `model` section, or of one that a `.nemo` recorded."""
    return MediaReader(
        rules=media_rules_of(model_cfg, vision),
        processor=enlarged(processor, vision.image_side // vision.side),
        aspect_ratio=model_cfg.data.image_aspect_ratio,
        exif_transpose=turns_images(model_cfg),
        jpeg_decoder=available(jpeg_decoder_of(model_cfg)),
        video=video_choice(model_cfg.data),
    )
