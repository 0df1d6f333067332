"""From the messages of a request to what the model reads: exactly what training rendered.

A list of parts is rendered as the chat template of an export does (`neva.templates.jinja`): images first, each on a
line of its own, then the texts. A text that holds `<image>` places its message's images itself.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from neva.constants import IMAGE_PLACEHOLDER
from neva.data.media.image import decode_image
from neva.data.media.placeholders import Medium, as_images, pieces_of
from neva.errors import SampleError
from neva.families.media_tokens import MediumLayout
from neva.formats.json import half_character
from neva.inference.load import Assistant
from neva.serving.image_urls import image_bytes
from neva.serving.options import ServeOptions
from neva.serving.protocol import ImagePart, Message, TextPart
from neva.templates.template import Turn, insert_media, placeholders

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What images may be: decoders without programs of their own behind them."""
_SIDES: dict[str, Literal["human", "gpt"]] = {"user": "human", "assistant": "gpt"}


@dataclass(frozen=True)
class Picture:
    """Pixels [T, 3, height, width] of its tiles, and a digest by which the same file, seen alike, is known again."""

    digest: bytes
    layout: MediumLayout
    pixels: Tensor


@dataclass(frozen=True)
class Question:
    """What the model continues: ids [S], the images in reading order, and where the first answer begins."""

    ids: list[int]
    pictures: tuple[Picture, ...]
    first_answer: int | None = None
    """None: behind the ids."""


class Reader:
    """Reads requests; several threads may do so at once.

    Args:
        assistant: the model.
        options: the limits.
    """

    def __init__(self, assistant: Assistant, options: ServeOptions) -> None:
        self._assistant, self._options = assistant, options
        self._tokenizer_lock = threading.Lock()

    def read(self, messages: Sequence[Message]) -> Question:
        """Returns what the model continues.

        Raises:
            SampleError: the messages are no conversation that the template takes, or an image cannot be used.
        """
        system, turns, urls = _conversation(messages)
        if len(urls) > self._options.max_images:
            raise SampleError(
                f"found {len(urls)} images, expected at most {self._options.max_images} in a request"
            )
        pictures = tuple(self._picture(number, url, len(urls) == 1) for number, url in enumerate(urls, 1))
        layouts = [picture.layout for picture in pictures]
        asked, pieces = as_images(turns, layouts), pieces_of(layouts)
        with self._tokenizer_lock:
            ids = self._assistant.encoder.next_turn(asked, pieces, system)
            first = None
            if len(asked) > 1 and self._assistant.model.language_model.sees_whole_prompts:
                question = asked[:1]
                first = len(
                    self._assistant.encoder.next_turn(question, pieces[: placeholders(question)], system)
                )
        return Question(ids, pictures, first)

    def _picture(self, number: int, url: str, is_alone: bool) -> Picture:
        media = self._assistant.media
        try:
            data = image_bytes(url, self._options)
            image = decode_image(data, media.exif_transpose, FORMATS, self._options.max_image_pixels)
        except SampleError as error:
            raise SampleError(f"image {number}: {error}") from error
        medium = Medium("image", image, is_alone)
        layout = media.layout(medium)
        digest = hashlib.sha256(data + repr(layout).encode()).digest()
        return Picture(digest, layout, media.pixels(medium, layout))


def _conversation(messages: Sequence[Message]) -> tuple[str | None, list[Turn], list[str]]:
    """Returns the system prompt, the turns, and the URLs of their images in reading order."""
    system = None
    turns, urls = [], []
    for number, message in enumerate(messages):
        text, images = _content(message)
        if half := half_character(text):
            raise SampleError(f"message {number + 1} holds {half}, half of a character; expected whole ones")
        if side := _SIDES.get(message.role):
            if images and message.role == "assistant":
                raise SampleError("an assistant's message holds an image; only a user's may")
            turns.append(Turn(side, text))
            urls += images
        elif number:
            raise SampleError(f"message {number + 1} is the {message.role}'s; only the first may be")
        else:
            system = text
            if images:
                raise SampleError("the system message holds an image; only a user's may")
    roles = [message.role for message in messages if message.role in _SIDES]
    if roles != (["user", "assistant"] * len(roles))[: len(roles)] or not len(roles) % 2:
        raise SampleError(
            "expected a user's message and an assistant's in turn, a user's first and last, behind the system's; "
            f"found {', '.join(message.role for message in messages)[:200]}"
        )
    return system, turns, urls


def _content(message: Message) -> tuple[str, list[str]]:
    """Returns the text of a message, with a placeholder for each image, and the images' URLs."""
    if isinstance(message.content, str):
        return message.content, []
    text = "".join(part.text for part in message.content if isinstance(part, TextPart))
    urls = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
    if IMAGE_PLACEHOLDER not in text:
        return insert_media(text, len(urls), "left", IMAGE_PLACEHOLDER), urls
    if text.count(IMAGE_PLACEHOLDER) != len(urls):
        raise SampleError(
            f"found {text.count(IMAGE_PLACEHOLDER)} {IMAGE_PLACEHOLDER} in a message with {len(urls)} images; "
            "write one for each, or none to have them in front"
        )
    return text, urls
