"""What samples of a run really are: their text by what is learnt, and their images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.collate import picture_shapes
from neva.data.dataset import ConversationDataset, Sample
from neva.data.media.image import load_image
from neva.data.sources.source import MediaFile, Record
from neva.errors import SampleError, UserError
from neva.families.pictures import split_pictures

Kind = Literal["trained", "masked", "image"]

THUMBNAIL = 192
"""Longest edge of the images shown, pixels."""


@dataclass(frozen=True)
class Stretch:
    """Tokens that follow each other and are treated alike."""

    text: str
    kind: Kind
    num_tokens: int
    is_special: bool
    """Whether they are special tokens of the tokenizer."""


@dataclass(frozen=True, eq=False)
class ShownImage:
    """One image of a record."""

    name: str
    size: tuple[int, int] | None
    """Width and height of the file; None: it is no image file of the folder."""
    thumbnail: Image.Image | None


@dataclass(frozen=True, eq=False)
class Inspected:
    """One record, and the sample that it becomes."""

    index: int
    record: Record | None
    """None: it is malformed."""
    problem: str | None
    """Why it becomes no sample."""
    stretches: tuple[Stretch, ...] = ()
    images: tuple[ShownImage, ...] = ()
    seen: tuple[Image.Image, ...] = ()
    """What the tower sees, in the order of the placeholders: tiles, frames, pictures of their own shape."""
    seen_sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of each, pixels."""

    def count(self, kind: Kind) -> int:
        """Returns its tokens of a kind."""
        return sum(stretch.num_tokens for stretch in self.stretches if stretch.kind == kind)

    @property
    def num_tokens(self) -> int:
        """Positions that it takes."""
        return sum(stretch.num_tokens for stretch in self.stretches)


def inspect_sample(
    dataset: ConversationDataset, index: int, mean: Sequence[float], std: Sequence[float]
) -> Inspected:
    """Reads one record as training would; what is wrong with it is told, not raised.

    Args:
        dataset: of the run.
        index: of the record in it.
        mean: that pixels were normalised with, by colour.
        std: the same.
    """
    record = None
    try:
        record = dataset.records[index]
        sample = dataset.read(index)
    except SampleError as error:
        return Inspected(index, record, str(error))
    tiles = _tiles(sample)
    return Inspected(
        index,
        record,
        None,
        tuple(stretches(sample.input_ids.tolist(), sample.labels.tolist(), dataset.encoder.tokenizer)),
        tuple(_shown(dataset, name) for name in record.images),
        tuple(_as_seen(pixels, mean, std) for pixels in tiles),
        tuple((pixels.shape[2], pixels.shape[1]) for pixels in tiles),
    )


def _tiles(sample: Sample) -> Sequence[torch.Tensor]:
    """Returns the pixels [3, height, width] of each tile."""
    shapes = picture_shapes(sample.media)
    return split_pictures(sample.pixel_values, shapes) if shapes else list(sample.pixel_values)


def stretches(
    input_ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerFast
) -> Iterator[Stretch]:
    """Yields a sample's tokens, joined where they are treated alike; labels are not shifted."""
    special = set(tokenizer.all_special_ids)
    # a text that begins with a space loses it when it is decoded alone
    before = tokenizer(".", add_special_tokens=False)["input_ids"]
    first = len(_decoded(tokenizer, before))

    def treatment(position: int) -> tuple[Kind, bool]:
        token = input_ids[position]
        if token == IMAGE_TOKEN_ID:
            return "image", False
        return "masked" if labels[position] == IGNORE_INDEX else "trained", token in special

    for (kind, is_special), positions in groupby(range(len(input_ids)), key=treatment):
        ids = [input_ids[position] for position in positions]
        text = "<image>" if kind == "image" else _decoded(tokenizer, [*before, *ids])[first:]
        yield Stretch(text, kind, len(ids), is_special)


def _decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _shown(dataset: ConversationDataset, file: str | MediaFile) -> ShownImage:
    name = f"{file!s:.200}"
    try:
        source = dataset.files.image(file)
        image = load_image(source, dataset.media.exif_transpose)
    except UserError:
        return ShownImage(name, None, None)
    thumbnail = image.copy()
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return ShownImage(name, image.size, thumbnail)


def _as_seen(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Returns normalised pixels [3, H, W] as an image."""
    plain = pixels * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    array = (plain.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(array))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image
