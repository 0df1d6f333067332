"""Inputs of a proof: texts, questions, and pictures that need no file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from neva.config.media import media_rules_of
from neva.convert.lazy_model import LazyModel
from neva.data.collate import feature_order
from neva.data.media.processor import load_image_processor
from neva.families.media_tokens import PictureShape, tokens_per_image

TEXT = "Once upon a time"
QUESTIONS = ("What is in the picture?", "Describe the image in detail.", "How many colours are there?")
ROUND_TRIP_TEXTS = (
    *QUESTIONS,
    TEXT,
    "Hello  world\n\n1 + 1 = 2, naïve café 漢字 🙂",
    " leading and trailing ",
)


@dataclass(frozen=True)
class ParityInput:
    """Inputs as transformers takes them; `image_token_id` marks image positions in `input_ids` [1, S].

    With tiles, `image_sizes` are height and width of the picture, and `feature_order` is what
    `neva.data.batch.Batch` has for the native model. Where pictures differ in shape, `pixel_attention_mask` tells them
    from what pads them, and the native model takes `pictures` and `picture_pixels` [E] as a `Batch` has them.
    `batch_num_images` are the images of each row, `pixel_values_videos` [1, frames, 3, height, width] those of a video,
    whose positions `video_token_id` marks.
    """

    input_ids: Tensor
    pixel_values: Tensor | None = None
    image_token_id: int | None = None
    image_sizes: Tensor | None = None
    feature_order: Tensor | None = None
    pixel_attention_mask: Tensor | None = None
    batch_num_images: Tensor | None = None
    pixel_values_videos: Tensor | None = None
    video_token_id: int | None = None
    pictures: tuple[PictureShape, ...] = ()
    picture_pixels: Tensor | None = None

    @property
    def placeholder_ids(self) -> list[int]:
        """The ids that mark positions of media."""
        return [number for number in (self.image_token_id, self.video_token_id) if number is not None]


def text_input(tokenizer_dir: Path, vocab_size: int) -> ParityInput:
    """Returns a text, or the first ids of the vocabulary where there is no tokenizer.json."""
    file = tokenizer_dir / "tokenizer.json"
    if not file.is_file():
        return ParityInput(torch.arange(1, 33).remainder(vocab_size)[None])
    return ParityInput(torch.tensor([Tokenizer.from_file(str(file)).encode(TEXT).ids]))


def chat_inputs(processor: Any, model: LazyModel) -> list[ParityInput]:
    """Returns a question about each picture, and one without a picture, in the export's own chat template."""
    inputs = []
    image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    rules = media_rules_of(model.config, model.vision)
    for question, image in zip(QUESTIONS, parity_images(model.vision.side), strict=True):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        encoded = processor(images=image, text=prompt, return_tensors="pt")
        sizes, order = encoded.get("image_sizes"), feature_order([rules.image(*image.size)])
        inputs.append(
            ParityInput(encoded["input_ids"], encoded["pixel_values"], image_token_id, sizes, order)
        )
    inputs.append(ParityInput(processor(text=TEXT, return_tensors="pt")["input_ids"], None, image_token_id))
    return inputs


def original_inputs(model: LazyModel, tokenizer_dir: Path) -> list[ParityInput]:
    """Returns a question about each picture, tokenised around the image as LLaVA's `tokenizer_image_token` does."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    prompts = [
        (
            tokenizer.encode("USER: ").ids,
            tokenizer.encode(f"\n{question} ASSISTANT:", add_special_tokens=False).ids,
        )
        for question in QUESTIONS
    ]
    used = {token for prompt in prompts for half in prompt for token in half}
    image_id = next(number for number in range(model.language.vocab_size) if number not in used)
    processor = native_processor(model)
    inputs = []
    for (before, after), image in zip(prompts, parity_images(model.vision.side), strict=True):
        ids = [*before, *[image_id] * tokens_per_image(model.vision, model.connector), *after]
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        inputs.append(ParityInput(torch.tensor([ids]), pixels, image_id))
    return inputs


def native_processor(model: LazyModel) -> Any:
    """Returns transformers' image processor with the settings that training used."""
    return load_image_processor(model.image_processor or {})


def parity_images(size: int) -> list[Image.Image]:
    """Returns a wide, a high and a square picture of waves and noise."""
    generator = np.random.default_rng(0)
    images = []
    for number, (width, height) in enumerate(((2 * size, size), (size, 3 * size // 2), (size, size))):
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        waves = [np.sin((x * (number + 1) + y * channel) / size * math.pi) for channel in range(3)]
        noise = generator.normal(0.0, 0.2, (height, width, 3))
        pixels = (np.stack(waves, -1) / 2 + 0.5 + noise).clip(0, 1) * 255
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    return images
