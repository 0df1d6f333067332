"""Idefics2's inputs: the ids, labels and pixels of transformers' processor, whatever stands around the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.encode import ConversationEncoder
from neva.data.media.placeholders import Medium, as_images, pieces_of
from neva.data.media.reader import MediaReader
from neva.data.tokenizer import from_folder
from neva.families.media_tokens import MediumLayout, media_rules
from neva.families.own_shapes import NativeShape
from neva.families.pictures import split_pictures
from neva.families.vision_reading import vision_config_from_hf
from neva.registry import TEMPLATES
from neva.templates.template import Turn
from tests.idefics2 import EDGES, END, FAKE, LATENTS, PICTURES, VISION, processor, write_idefics2_tokenizer

TOWER = vision_config_from_hf({"model_type": "idefics2", "vision_config": VISION})
CONVERSATIONS: list[tuple[list[str], int]] = [
    (["<image>What is it?", "A cat."], 1),
    (["What is <image>?", "No idea"], 1),
    (["Compare <image><image> and\n<image>now", "They differ.", "And <image> this?", "The same"], 4),
    (["<image> <image>", "two"], 2),
    (["<video><image> and the tag <video>", "none <video>"], 1),
    (["Hello", "Hi", "How?", "So"], 0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idefics2_tokenizer(tmp_path_factory.mktemp("idefics2"))


def reader(splits: bool) -> MediaReader:
    rules = media_rules(TOWER, "perceiver_n5_d1_h4x8_m52", NativeShape(**EDGES, splits=splits))
    square = {"height": 63, "width": 63}
    images = SiglipImageProcessorPil(size=square, resample=Image.Resampling.BILINEAR)
    return MediaReader(rules, images, "native", False, video=None)


def encoder(folder: Path, **changes: Any) -> ConversationEncoder:
    return ConversationEncoder(
        tokenizer=from_folder(folder),
        template=TEMPLATES["idefics2"],
        max_length=2000,
        sep_image_conv_front=False,
        image_tags=(FAKE, FAKE),
        **changes,
    )


def turns_of(texts: Sequence[str]) -> list[Turn]:
    return [Turn("gpt" if number % 2 else "human", text) for number, text in enumerate(texts)]


def messages_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The same as parts: texts between images."""
    messages = []
    for turn in turns_of(texts):
        content: list[dict[str, str]] = []
        for number, text in enumerate((turn.text or "").split("<image>")):
            content += [{"type": "image"}] * bool(number)
            content += [{"type": "text", "text": text}] * bool(text)
        messages.append({"role": "user" if turn.role == "human" else "assistant", "content": content})
    return messages


def ours(reader: MediaReader, encoder: ConversationEncoder, texts: Sequence[str], count: int) -> Any:
    media = [Medium("image", picture) for picture in PICTURES[:count]]
    layouts: list[MediumLayout] = [reader.layout(medium) for medium in media]
    encoded = encoder.fitted(as_images(turns_of(texts), layouts), pieces_of(layouts))
    pixels = [
        picture
        for medium, layout in zip(media, layouts, strict=True)
        for picture in split_pictures(reader.pixels(medium, layout), layout.pictures)
    ]
    return encoded, pixels


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize(("texts", "count"), CONVERSATIONS)
def test_ids_and_pixels_are_those_of_the_processor(
    folder: Path, splits: bool, texts: list[str], count: int
) -> None:
    encoded, pixels = ours(reader(splits), encoder(folder), texts, count)
    theirs = processor(folder, splits)
    prompt = theirs.apply_chat_template(messages_of(texts))
    expected = theirs(text=prompt, images=[PICTURES[:count]] if count else None, return_tensors="pt")
    ids = expected["input_ids"][0]
    found = torch.tensor(encoded.input_ids)
    assert torch.equal(found.where(found != IMAGE_TOKEN_ID, theirs.image_token_id), ids)
    assert (ids == theirs.image_token_id).sum() == count * LATENTS * (5 if splits else 1)
    if not count:
        return
    assert len(pixels) == expected["pixel_values"].shape[1]
    for mine, values, mask in zip(
        pixels, expected["pixel_values"][0], expected["pixel_attention_mask"][0], strict=True
    ):
        height, width = int(mask[:, 0].sum()), int(mask[0].sum())
        assert mine.shape == (3, height // 7 * 7, width // 7 * 7)
        assert torch.equal(mine, values[:, : mine.shape[1], : mine.shape[2]])


def test_answers_or_all_but_images_carry_loss(folder: Path) -> None:
    texts, count = CONVERSATIONS[2]
    answers, _ = ours(reader(False), encoder(folder), texts, count)
    tokenizer = from_folder(folder)
    learnt = [token for token in answers.labels if token != IGNORE_INDEX]
    assert tokenizer.decode(learnt) == f"They differ.{END} The same{END}"
    everything, _ = ours(reader(False), encoder(folder, answer_loss_only=False), texts, count)
    assert everything.input_ids == answers.input_ids
    assert everything.labels == [
        IGNORE_INDEX if token == IMAGE_TOKEN_ID else token for token in answers.input_ids
    ]
