"""From images to pixels, by the tower's own Hugging Face image processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_processing_backends import PilBackend
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from neva.data.media.image import expand_to_square
from neva.data.media.processor_settings import check_settings, scaled, square_settings
from neva.data.media.resize import FILTERS, resized_middle
from neva.data.media.tiles import cut_into_tiles, stretched
from neva.errors import ConfigError, DataError, reason
from neva.families.tiling import TileGrid, View
from neva.families.vision import vision_family
from neva.formats.hf_files import IMAGE_PROCESSOR_CONFIG, image_processor_settings
from neva.registry import VISION_FAMILIES

LARGEST_WHOLE = 2**24
LONG = 20
"""A resized image of more pixels, or a square that has also that many times those of its image, is not made whole."""

AspectRatio: TypeAlias = Literal[
    "square", "pad", "pad_right_bottom", "keep", "native", "naflex", "anyres", "dynamic", "grid"
]
ImageProcessor: TypeAlias = Any
"""A transformers `BaseImageProcessor`, which gets its settings as attributes at run time."""


def build_image_processor(vision_cfg: DictConfig) -> ImageProcessor:
    """Builds the image processor of `model.mm_cfg.vision_encoder`: the tower folder's, or one of the YAML's sizes.

    Raises:
        ConfigError: its images are not squares of the tower's size.
        DataError: the folder has none, and neither has the tower's family.
    """
    folder = None if vision_cfg.from_pretrained is None else Path(vision_cfg.from_pretrained)
    settings = None if folder is None else image_processor_settings(folder)
    side = vision_cfg.get("input_size") or vision_cfg.image_size
    if settings is not None:
        settings = square_settings(settings, vision_cfg.image_size)
    if settings is None:
        processor = _default_processor(vision_cfg, side)
    else:
        processor = load_image_processor(settings, folder)
        if side != vision_cfg.image_size:
            require_square(processor, vision_cfg.image_size, folder)
            processor = enlarged(processor, side / vision_cfg.image_size, folder)
    require_square(processor, side, folder)
    return processor


def require_square(processor: ImageProcessor, size: int, where: str | Path | None) -> None:
    """Raises ConfigError when a processor, whose settings lie `where`, gives other pixels than [3, size, size]."""
    try:
        shape = tuple(to_pixels(Image.new("RGB", (size, size)), processor, "square").shape)
    except Exception as error:  # whatever its settings make transformers, numpy and Pillow raise
        raise ConfigError(
            f"the image processor of {where} makes no pixels ({type(error).__name__}: {reason(error)}); take the "
            f"{IMAGE_PROCESSOR_CONFIG} that belongs to the tower"
        ) from error
    if shape != (3, size, size):
        raise ConfigError(
            f"the image processor of {where} gives pixels of shape {shape}, the tower needs {(3, size, size)}; set "
            "model.mm_cfg.vision_encoder.image_size to what the checkpoint was trained with"
        )


def checked_settings(settings: Mapping[str, Any], size: int, where: str | Path) -> Mapping[str, Any]:
    """Returns the settings of an image processor that gives pixels [3, size, size].

    Raises:
        UserError: they make none, or other ones; the message names `where` they lie.
    """
    require_square(load_image_processor(settings, where), size, where)
    return settings


def enlarged(processor: ImageProcessor, factor: float, where: Path | None = None) -> ImageProcessor:
    """Returns the processor that does the same on images `factor` times as high and wide; its settings lie `where`."""
    if factor == 1:
        return processor
    return load_image_processor(scaled(json.loads(processor.to_json_string()), factor), where)


def load_image_processor(settings: Mapping[str, Any], where: str | Path | None = None) -> ImageProcessor:
    """Loads the processor of a preprocessor_config.json's content, in its PIL form (no torchvision).

    Raises:
        DataError: it is none of an image processor; the message names `where` it lies.
    """
    check_settings(settings, where or IMAGE_PROCESSOR_CONFIG)
    with TemporaryDirectory() as folder:
        (Path(folder) / IMAGE_PROCESSOR_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
        try:
            return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        except Exception as error:  # whatever its settings make transformers raise
            raise DataError(
                f"transformers reads no image processor from {where} ({reason(error)}); take the "
                f"{IMAGE_PROCESSOR_CONFIG} that belongs to the tower"
            ) from error


def _default_processor(vision_cfg: DictConfig, side: int) -> ImageProcessor:
    family = vision_family(vision_cfg.model_type)
    if family.image_processor is None:
        known = ", ".join(member.model_type for member in VISION_FAMILIES if member.image_processor)
        raise DataError(
            f"no preprocessor_config.json at {vision_cfg.from_pretrained} for a tower of type "
            f"{vision_cfg.model_type!r}; only {known} have a known default: add the file to the tower's folder"
        )
    return family.build_image_processor(side, vision_cfg.image_mean, vision_cfg.image_std)


def to_pixels(image: Image.Image, processor: ImageProcessor, aspect_ratio: AspectRatio) -> torch.Tensor:
    """Returns normalised pixels, float32 `[3, height, width]`, bit-equal to `processor.preprocess(image)`.

    `pad` first centres the image on a square of the processor's mean colour (LLaVA's `expand2square`).
    `pad_right_bottom` resizes the longest edge to the tower's and pads the normalised pixels with zeros (Megatron-LM's
    multimodal examples, Pai-Megatron-Patch).
    """
    if aspect_ratio == "pad_right_bottom":
        _require_standard_steps(processor, aspect_ratio)
        return _in_top_left_corner(image, processor)
    background = tuple(int(mean * 255) for mean in processor.image_mean) if aspect_ratio == "pad" else None
    if not _has_standard_steps(processor):
        image = image if background is None else expand_to_square(image, background)
        return processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
    array = np.asarray(_resized(image, background, processor))
    if getattr(processor, "do_center_crop", False):
        array = _center_crop(array, processor.crop_size["height"], processor.crop_size["width"])
    return torch.from_numpy(_normalised(array, processor))


def to_tile_pixels(
    image: Image.Image, processor: ImageProcessor, grid: TileGrid, tile_size: int, pads: bool
) -> torch.Tensor:
    """Returns normalised pixels of the tiles of an RGB image, float32 `[tiles, 3, tile_size, tile_size]`.

    They are bit-equal to those of transformers' processors, see `cut_into_tiles`.
    """
    _require_standard_steps(processor, "anyres, dynamic or grid")
    tiles = cut_into_tiles(image, grid, tile_size, pads, processor.resample)
    return torch.from_numpy(np.stack([_normalised(np.asarray(tile), processor) for tile in tiles]))


def to_view_pixels(image: Image.Image, processor: ImageProcessor, view: View) -> torch.Tensor:
    """Returns normalised pixels of what a view shows of an RGB image, float32 `[3, view.height, view.width]`.

    They are bit-equal to `processor.preprocess` of that part at the size `view.resized` and without a crop, as far as
    whole patches of it reach.
    """
    _require_standard_steps(processor, "keep, native or naflex")
    part = image if view.box is None else image.crop(view.box)
    height, width = view.resized
    array = np.asarray(stretched(part, (width, height), processor.resample))[: view.height, : view.width]
    return torch.from_numpy(_normalised(array, processor))


def _require_standard_steps(processor: ImageProcessor, aspect_ratio: str) -> None:
    if not _has_standard_steps(processor):
        raise ConfigError(
            f"model.data.image_aspect_ratio={aspect_ratio} needs an image processor that resizes, rescales and "
            f"normalises as CLIP's, found {type(processor).__name__} with other steps: choose square or pad"
        )


def _in_top_left_corner(image: Image.Image, processor: ImageProcessor) -> torch.Tensor:
    square = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height, width = square["height"], square["width"]
    ratio = max(height, width) / max(image.size)
    scaled = [max(1, int(edge * ratio + 0.5)) for edge in image.size]
    array = np.asarray(image.resize((scaled[0], scaled[1]), resample=processor.resample))
    pixels = torch.zeros(3, height, width)
    pixels[:, : array.shape[0], : array.shape[1]] = torch.from_numpy(_normalised(array, processor))
    return pixels


def _normalised(array: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """Returns float32 `[3, height, width]` of uint8 `[height, width, 3]`."""
    table = _normalised_values(
        processor.rescale_factor, tuple(processor.image_mean), tuple(processor.image_std)
    )
    pixels = np.empty((3, *array.shape[:2]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], array[:, :, channel], out=pixels[channel])
    return pixels


def _resized(
    image: Image.Image, background: tuple[int, ...] | None, processor: ImageProcessor
) -> Image.Image | np.ndarray:
    """Returns an image, on a square of a background colour or not, as the processor resizes it.

    Of a very long one only what the crop keeps is made: the whole would take gigabytes.
    """
    canvas = image.size if background is None else (max(image.size), max(image.size))
    target = _resized_size(canvas, processor.size) if processor.do_resize else canvas
    area = canvas[0] * canvas[1]
    grows = background is None and min(target) > min(canvas) and target[0] * target[1] > LARGEST_WHOLE
    is_padded = background is not None and area > max(LARGEST_WHOLE, LONG * image.width * image.height)
    if (grows or is_padded) and processor.do_resize and processor.resample in FILTERS:
        crop = processor.crop_size if getattr(processor, "do_center_crop", False) else None
        kept = target if crop is None else (crop["width"], crop["height"])
        colour = background or (0, 0, 0)
        return resized_middle(np.asarray(image), canvas, colour, target, kept, processor.resample)
    if background is not None:
        image = expand_to_square(image, background)
    return image if image.size == target else image.resize(target, resample=processor.resample)


def _has_standard_steps(processor: ImageProcessor) -> bool:
    """Whether the processor resizes, crops, rescales and normalises as transformers' PIL backend does."""
    cls: Any = type(processor)
    steps = ("preprocess", "_preprocess", "process_image", "resize", "center_crop", "rescale", "normalize")
    return (
        issubclass(cls, PilBackend)
        and all(getattr(cls, step) is getattr(PilBackend, step) for step in steps)
        and processor.do_rescale
        and processor.do_normalize
        and not getattr(processor, "do_pad", False)
        and (not processor.do_resize or bool(processor.size.height) != bool(processor.size.shortest_edge))
    )


def _resized_size(size: tuple[int, int], target: Any) -> tuple[int, int]:
    """Width and height after resizing, by the rule of transformers' `get_resize_output_image_size`."""
    if not target.shortest_edge:
        return target.width, target.height
    width, height = size
    if width <= height:
        return target.shortest_edge, int(target.shortest_edge * height / width)
    return int(target.shortest_edge * width / height), target.shortest_edge


def _center_crop(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle `[height, width, 3]`; what lies outside the image is black, as in transformers'
    `center_crop`."""
    for axis, wanted in ((0, height), (1, width)):
        found = array.shape[axis]
        if found < wanted:
            before = -((found - wanted) // 2)
            margins = [(0, 0)] * 3
            margins[axis] = (before, wanted - found - before)
            array = np.pad(array, margins)
        else:
            first = (found - wanted) // 2
            array = array[first : first + wanted] if axis == 0 else array[:, first : first + wanted]
    return array


@lru_cache(maxsize=8)
def _normalised_values(rescale_factor: float, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 `[3, 256]`: what transformers' own arithmetic makes of each value of each colour.

    Looking values up is exact and several times cheaper than the float64 arithmetic on every pixel.
    """
    processor = CLIPImageProcessorPil(
        do_resize=False,
        do_center_crop=False,
        rescale_factor=rescale_factor,
        image_mean=list(mean),
        image_std=list(std),
    )
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    return np.asarray(processor.preprocess(Image.fromarray(ramp))["pixel_values"][0][:, 0])
