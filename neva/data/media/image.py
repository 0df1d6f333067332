"""From image files to pixels, by the tower's own Hugging Face image processor."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_processing_backends import PilBackend
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from neva.errors import SampleError

ImageProcessor: TypeAlias = Any
"""A transformers `BaseImageProcessor`, which gets its settings as attributes at run time."""


def build_image_processor(vision_cfg: DictConfig) -> ImageProcessor:
    """The image processor of `model.mm_cfg.vision_encoder`: the tower folder's, or one made from the YAML's
    sizes.

    `ValueError` when its images are not `image_size` pixels square, or when there is nothing to make one
    from.
    """
    folder = None if vision_cfg.from_pretrained is None else Path(vision_cfg.from_pretrained)
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        processor = load_image_processor(folder)
    else:
        processor = _from_sizes(vision_cfg)
    size = vision_cfg.image_size
    shape = tuple(to_pixels(Image.new("RGB", (size, size)), processor, "square").shape)
    if shape != (3, size, size):
        raise ValueError(
            f"the image processor of {folder} gives pixels of shape {shape}, the tower needs "
            f"{(3, size, size)}; set model.mm_cfg.vision_encoder.image_size to what the checkpoint was trained with"
        )
    return processor


def load_image_processor(folder: Path) -> ImageProcessor:
    """The processor that a folder's preprocessor_config.json describes, in its PIL form (no torchvision)."""
    return AutoImageProcessor.from_pretrained(str(folder), backend="pil", local_files_only=True)


def load_image(path: Path) -> Image.Image:
    """The image as 8-bit RGB, without turning it by its EXIF orientation (as LLaVA does).

    Transparency is dropped; of 16-bit grey the high byte is kept. `SampleError` names a file that is missing
    or broken.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except FileNotFoundError as error:
        raise SampleError(f"image file {path} does not exist") from error
    # PIL's decoders raise whatever their format module raises: OSError, SyntaxError, struct.error, …
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            # Not the file's fault and perhaps not the same on every rank: no reason to skip a record.
            raise
        raise SampleError(
            f"image file {path} cannot be decoded ({type(error).__name__}: {error}); replace or remove it"
        ) from error


def to_pixels(
    image: Image.Image, processor: ImageProcessor, aspect_ratio: Literal["square", "pad"]
) -> torch.Tensor:
    """Normalised pixels, float32 `[3, height, width]`, bit-equal to `processor.preprocess(image)`.

    `pad` first centres the image on a square of the processor's mean colour (LLaVA's `expand2square`).
    """
    if aspect_ratio == "pad":
        image = expand_to_square(image, tuple(int(mean * 255) for mean in processor.image_mean))
    if not _has_standard_steps(processor):
        return processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
    if processor.do_resize and image.size != (target := _resized_size(image.size, processor.size)):
        image = image.resize(target, resample=processor.resample)
    array = np.asarray(image)
    if getattr(processor, "do_center_crop", False):
        array = _center_crop(array, processor.crop_size["height"], processor.crop_size["width"])
    table = _normalised_values(
        processor.rescale_factor, tuple(processor.image_mean), tuple(processor.image_std)
    )
    pixels = np.empty((3, *array.shape[:2]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], array[:, :, channel], out=pixels[channel])
    return torch.from_numpy(pixels)


def expand_to_square(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """The image centred on the smallest square that holds it."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _from_sizes(vision_cfg: DictConfig) -> ImageProcessor:
    size = vision_cfg.image_size
    normalisation: dict[str, Any] = {
        "image_mean": list(vision_cfg.image_mean),
        "image_std": list(vision_cfg.image_std),
    }
    square = {"height": size, "width": size}
    if vision_cfg.model_type == "clip":
        return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square, **normalisation)
    if vision_cfg.model_type == "siglip":
        return SiglipImageProcessorPil(size=square, **normalisation)
    raise ValueError(
        f"no preprocessor_config.json at {vision_cfg.from_pretrained} for a tower of type "
        f"{vision_cfg.model_type!r}; only clip and siglip have a known default: add the file to the tower's folder"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # PIL's own conversion clips at 255, which makes almost every 16-bit image white.
        grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return grey.convert("RGB")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # Same colours as the direct way, which warns.
        image = image.convert("RGBA")
    return image.convert("RGB")


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
