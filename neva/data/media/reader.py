"""Media as the tower and the sequence need them, for training and inference alike.

Dimensions: T tiles of a medium, H and W pixels of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from neva.config.model_config import media_rules_of, turns_images
from neva.data.media.image import image_size, load_image, require_image_file
from neva.data.media.processor import AspectRatio, ImageProcessor, to_pixels, to_tile_pixels
from neva.families.configs import VisionConfig
from neva.families.media_tokens import MediaRules, MediumLayout

ImageInput: TypeAlias = Path | Image.Image
"""An image file, or an image that was made in Python."""


@dataclass(frozen=True)
class MediaReader:
    """Reads the media of records and prompts by the rules of one configuration."""

    rules: MediaRules
    processor: ImageProcessor
    aspect_ratio: AspectRatio
    exif_transpose: bool

    def layout(self, image: ImageInput) -> MediumLayout:
        """Returns what an image becomes, decoding nothing; its file is opened where its size matters.

        Raises:
            SampleError: there is no such file, or it is no image.
            DataError: this machine cannot read it.
        """
        tile = self.rules.tile_size
        if not self.rules.tiling.cuts:
            return self.rules.image(tile, tile)
        return self.rules.image(*self._size(image))

    def require(self, image: ImageInput) -> None:
        """Raises what `pixels` would, as far as that is seen without decoding."""
        if isinstance(image, Path):
            require_image_file(image)

    def pixels(self, image: ImageInput, layout: MediumLayout) -> Tensor:
        """Returns the pixels [T, 3, H, W] of an image that has this layout.

        Raises:
            SampleError: the file is missing or broken.
            DataError: this machine cannot read it.
        """
        loaded = load_image(image, self.exif_transpose) if isinstance(image, Path) else image.convert("RGB")
        if not self.rules.tiling.cuts:
            return to_pixels(loaded, self.processor, self.aspect_ratio)[None]
        assert layout.grid is not None
        return to_tile_pixels(
            loaded, self.processor, layout.grid, self.rules.tile_size, self.rules.tiling.pads
        )

    def no_pixels(self) -> Tensor:
        """Returns the pixels [0, 3, H, W] of a sample without media."""
        return torch.empty(0, 3, self.rules.tile_size, self.rules.tile_size)

    def _size(self, image: ImageInput) -> tuple[int, int]:
        return image_size(image, self.exif_transpose) if isinstance(image, Path) else image.size


def build_media_reader(model_cfg: DictConfig, vision: VisionConfig, processor: ImageProcessor) -> MediaReader:
    """Builds the reader of a resolved `model` section, or of one that a `.nemo` recorded."""
    return MediaReader(
        rules=media_rules_of(model_cfg, vision),
        processor=processor,
        aspect_ratio=model_cfg.data.image_aspect_ratio,
        exif_transpose=turns_images(model_cfg),
    )
