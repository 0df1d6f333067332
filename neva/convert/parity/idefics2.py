"""The proof of an Idefics2 folder: transformers pads and masks pictures, the native model sees each alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor

from neva.convert.lazy_model import LazyModel
from neva.convert.parity.llava import prove_inputs
from neva.convert.parity.samples import QUESTIONS, TEXT, ParityInput, native_processor, parity_images
from neva.data.collate import picture_shapes
from neva.data.media.placeholders import Medium
from neva.data.media.reader import MediaReader, build_media_reader
from neva.families.pictures import split_pictures


def prove_idefics2(model: LazyModel, folder: Path) -> None:
    """Proves an exported folder and writes `parity.json`.

    Raises:
        ParityError: a figure is not as it must be.
    """
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    reader = build_media_reader(model.config, model.vision, native_processor(model))
    pictures = _pictures(model.vision.image_size)
    groups = [pictures[:1], pictures[1:2], pictures]
    inputs = [
        _input(processor, reader, question, images)
        for question, images in zip(QUESTIONS, groups, strict=True)
    ]
    inputs.append(_input(processor, reader, TEXT, []))
    differences = [difference for sample in inputs for difference in _pixel_differences(sample)]
    prove_inputs(model, folder, inputs, differences)


def _pictures(side: int) -> list[Image.Image]:
    """Returns pictures of several shapes, one with sides that no patch divides."""
    wide, high, square = parity_images(side // 2)
    return [wide, square.resize((side // 2 + 1, side // 3 + 2)), high]


def _input(processor: Any, reader: MediaReader, question: str, images: Sequence[Image.Image]) -> ParityInput:
    content: list[dict[str, str]] = [{"type": "image"}] * len(images)
    content.insert(min(1, len(images)), {"type": "text", "text": question})
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    given = {"images": [list(images)]} if images else {}
    encoded = processor(text=prompt, return_tensors="pt", **given)
    media = [Medium("image", image) for image in images]
    layouts = [reader.layout(medium) for medium in media]
    pixels = [reader.pixels(medium, layout) for medium, layout in zip(media, layouts, strict=True)]
    return ParityInput(
        encoded["input_ids"],
        encoded.get("pixel_values"),
        processor.tokenizer.convert_tokens_to_ids(processor.image_token),
        pixel_attention_mask=encoded.get("pixel_attention_mask"),
        pictures=tuple(picture_shapes(layouts)),
        picture_pixels=torch.cat(pixels) if pixels else None,
    )


def _pixel_differences(sample: ParityInput) -> list[str]:
    """Returns the pictures whose pixels from the export are not bit-equal to what training sees of them."""
    if sample.pixel_values is None or sample.picture_pixels is None or sample.pixel_attention_mask is None:
        return []
    seen = split_pictures(sample.picture_pixels, sample.pictures)
    shown, masks = sample.pixel_values[0], sample.pixel_attention_mask[0]
    if len(shown) != len(seen):
        return [f"the export shows {len(shown)} pictures, training saw {len(seen)}"]
    differences = []
    for pixels, padded, mask in zip(seen, shown, masks, strict=True):
        height, width = pixels.shape[1:]
        if not mask[:height, :width].all() or not torch.equal(padded[:, :height, :width], pixels):
            differences.append(f"pixels of a picture of {height} x {width} are not those that training saw")
    return differences
