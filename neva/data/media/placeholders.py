"""Which medium each placeholder of a conversation stands for, and the text that the encoder reads in its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from PIL import Image

from neva.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from neva.data.sources.source import MediaFile
from neva.errors import SampleError
from neva.families.media_tokens import MediumLayout
from neva.templates.template import Turn

ImageInput: TypeAlias = MediaFile | Image.Image
"""An image file, the content of one, or an image that was made in Python."""

MediumKey: TypeAlias = tuple[str, MediaFile | int, bool]

PLACEHOLDER = re.compile(f"{re.escape(IMAGE_PLACEHOLDER)}|{re.escape(VIDEO_PLACEHOLDER)}")


class Medium(NamedTuple):
    """An image or a video file."""

    kind: Literal["image", "video"]
    source: ImageInput
    is_alone: bool = True
    """Whether an image is the only one of its record."""

    @property
    def key(self) -> MediumKey:
        """What it is known by: its file, or itself, and whether it is alone."""
        known = id(self.source) if isinstance(self.source, Image.Image) else self.source
        return self.kind, known, self.is_alone


def image_media(images: Sequence[ImageInput]) -> list[Medium]:
    """Returns the images of one record."""
    return [Medium("image", image, len(images) == 1) for image in images]


def media_in_order(
    turns: Sequence[Turn], images: Sequence[ImageInput], videos: Sequence[Path]
) -> list[Medium]:
    """Returns the media in the order of their placeholders; an encoder counts those of images.

    Where no turn has `<video>`, the `<image>` of a record without images stand for its videos, as in LLaVA-Video.

    Raises:
        SampleError: `<video>` and videos, or with videos `<image>` and images, differ in number.
    """
    if not videos:
        return image_media(images)
    found = [mark for turn in turns for mark in PLACEHOLDER.findall(turn.text or "")]
    if not images and found == [IMAGE_PLACEHOLDER] * len(videos):
        return [Medium("video", video) for video in videos]
    for mark, media in ((VIDEO_PLACEHOLDER, videos), (IMAGE_PLACEHOLDER, images)):
        if found.count(mark) != len(media):
            raise SampleError(
                f"found {found.count(mark)} {mark} placeholders for {len(media)} {mark[1:-1]}s; each needs exactly one",
                "placeholders",
            )
    image, video = iter(image_media(images)), iter(videos)
    return [next(image) if mark == IMAGE_PLACEHOLDER else Medium("video", next(video)) for mark in found]


def as_images(turns: Sequence[Turn], media: Sequence[MediumLayout]) -> list[Turn]:
    """Returns the turns with `<image>` for every placeholder, one for each piece of a medium.

    Where no medium is a video, `<video>` is text.

    Args:
        turns: with a placeholder for each medium.
        media: what the media become, in the order of the placeholders.
    """
    if all(len(medium.pieces) == 1 and medium.grid is not None for medium in media):
        return list(turns)
    left = iter(media)
    mark = PLACEHOLDER if any(medium.grid is None for medium in media) else re.compile(IMAGE_PLACEHOLDER)

    def spelt_out(_: re.Match[str]) -> str:
        medium = next(left)
        return (medium.separator or "").join([IMAGE_PLACEHOLDER] * len(medium.pieces))

    return [replace(turn, text=turn.text and mark.sub(spelt_out, turn.text)) for turn in turns]


def pieces_of(media: Sequence[MediumLayout]) -> list[int]:
    """Returns the positions at each `<image>` that `as_images` writes."""
    return [tokens for medium in media for tokens in medium.pieces]


def whole_media(media: Sequence[MediumLayout], pieces: int) -> tuple[MediumLayout, ...]:
    """Returns the first media that have that many pieces."""
    ends = accumulate(len(medium.pieces) for medium in media)
    return tuple(medium for medium, end in zip(media, ends, strict=True) if end <= pieces)
