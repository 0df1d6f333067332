"""The proof of a LLaVA-OneVision folder: an image alone, one beyond the cap, several, a video.

Its processor needs torchvision for the processor of videos alone, so it is put together here without that one; frames
are what the image processor makes of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from neva.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from neva.convert.lazy_model import LazyModel
from neva.convert.parity.llava import prove_inputs
from neva.convert.parity.samples import QUESTIONS, TEXT, ParityInput, native_processor, parity_images
from neva.data.collate import feature_order
from neva.data.media.placeholders import image_media
from neva.data.media.processor import to_tile_pixels
from neva.data.media.reader import MediaReader, build_media_reader
from neva.families.tiling import TileGrid
from neva.formats.hf_files import CHAT_TEMPLATE, PROCESSOR_CONFIG
from neva.formats.json import read_json


class WithoutVideos(LlavaOnevisionProcessor):
    """The processor of a folder, of images and texts."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        """Takes what it is given: the processor of videos is none."""
        return type(argument)


def onevision_processor(folder: Path) -> WithoutVideos:
    """Loads the processor of a folder without that of videos."""
    settings = read_json(folder / PROCESSOR_CONFIG)
    settings.pop("processor_class")
    return WithoutVideos(
        AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
        None,
        chat_template=(folder / CHAT_TEMPLATE).read_text(encoding="utf-8"),
        **settings,
    )


def prove_onevision(model: LazyModel, folder: Path) -> None:
    """Proves an exported folder and writes `parity.json`.

    Raises:
        ParityError: a figure is not as it must be.
    """
    processor = onevision_processor(folder)
    reader = build_media_reader(model.config, model.vision, native_processor(model))
    inputs, differences = [], []
    for question, images in zip(QUESTIONS * 2, _groups(model, reader), strict=False):
        sample, pixels = _of_images(processor, reader, question, images)
        inputs.append(sample)
        differences += _pixel_differences(sample, pixels)
    inputs.append(_of_video(processor, reader, QUESTIONS[0], parity_images(model.vision.side)))
    ids = processor(text=TEXT, return_tensors="pt")["input_ids"]
    inputs.append(_with_ids(ParityInput(ids), processor))
    prove_inputs(model, folder, inputs, differences)


def _groups(model: LazyModel, reader: MediaReader) -> list[list[Image.Image]]:
    """Returns the images of each prompt: one of odd sides, several, and one beyond the cap where the model has room."""
    side = model.vision.side
    wide, high, square = parity_images(side)
    odd = wide.resize((2 * side + 3, side - 5))
    groups = [[odd], [high], [square, wide]]
    shapes = reader.rules.tiling.fullest(side)
    reduced = [shape for shape in shapes if reader.rules.image(*shape).reduced is not None]
    smallest = min(reduced, key=lambda shape: shape[0] * shape[1], default=None)
    if smallest and reader.rules.image(*smallest).tokens + 128 <= model.language.max_positions:
        groups.append([wide.resize(smallest)])
    return groups


def _of_images(
    processor: WithoutVideos, reader: MediaReader, question: str, images: Sequence[Image.Image]
) -> tuple[ParityInput, list[Tensor]]:
    """Returns what transformers is given, and what training sees of each image."""
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
    encoded = processor(text=_prompt(processor, content), images=[list(images)], return_tensors="pt")
    media = image_media(list(images))
    layouts = [reader.layout(medium) for medium in media]
    sample = ParityInput(
        encoded["input_ids"],
        encoded["pixel_values"],
        image_sizes=encoded["image_sizes"],
        batch_num_images=encoded["batch_num_images"],
        feature_order=feature_order(layouts),
    )
    seen = [reader.pixels(medium, layout) for medium, layout in zip(media, layouts, strict=True)]
    return _with_ids(sample, processor), seen


def _of_video(
    processor: WithoutVideos, reader: MediaReader, question: str, frames: Sequence[Image.Image]
) -> ParityInput:
    layout = reader.rules.video(len(frames))
    content = [{"type": "video"}, {"type": "text", "text": question}]
    side, tile = reader.rules.tile_size, TileGrid(1, 1)
    pixels = torch.cat([to_tile_pixels(frame, reader.processor, tile, side, pads=False) for frame in frames])
    # as its own `__call__` does; what needs torchvision is the making of the pixels
    placeholders = processor.replace_video_token({"pixel_values_videos": pixels[None]}, 0)
    text = _prompt(processor, content).replace(VIDEO_PLACEHOLDER, placeholders)
    sample = ParityInput(
        processor.tokenizer(text, return_tensors="pt")["input_ids"],
        pixel_values_videos=pixels[None],
        picture_pixels=pixels,
        feature_order=feature_order([layout]),
    )
    return _with_ids(sample, processor)


def _prompt(processor: WithoutVideos, content: list[dict[str, str]]) -> str:
    messages: list[Any] = [{"role": "user", "content": content}]
    prompt: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return prompt


def _with_ids(sample: ParityInput, processor: WithoutVideos) -> ParityInput:
    image, video = processor.tokenizer.convert_tokens_to_ids([IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER])
    return replace(sample, image_token_id=image, video_token_id=video)


def _pixel_differences(sample: ParityInput, seen: Sequence[Tensor]) -> list[str]:
    """Returns the images whose pixels from the export are not bit-equal to what training sees of them."""
    assert sample.pixel_values is not None and sample.image_sizes is not None
    return [
        f"pixels of an image of height, width {size} are not those that training saw"
        for size, found, expected in zip(sample.image_sizes.tolist(), sample.pixel_values, seen, strict=True)
        if not torch.equal(found, expected)
    ]
