"""Pictures of several shapes: how they lie in one tensor, and which of them are encoded together, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neva.families.media_tokens import PictureShape

if TYPE_CHECKING:
    from torch import Tensor


def split_pictures(pixel_values: Tensor, pictures: Sequence[PictureShape]) -> list[Tensor]:
    """Returns the pixels [3, height, width] of each picture, views of the tensor [E] in which they lie."""
    parts = pixel_values.split([3 * picture.height * picture.width for picture in pictures])
    return [
        part.view(3, picture.height, picture.width) for part, picture in zip(parts, pictures, strict=True)
    ]


def share_out(pictures: Sequence[PictureShape], ranks: int) -> list[list[int]]:
    """Returns the numbers of the pictures that each rank encodes, about as many pixels on each.

    The largest picture goes first, each to the rank that has least; every rank finds the same.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    areas = [picture.height * picture.width for picture in pictures]
    for number in sorted(range(len(pictures)), key=lambda number: -areas[number]):
        rank = loads.index(min(loads))
        shares[rank].append(number)
        loads[rank] += areas[number]
    return shares


def by_shape(pictures: Sequence[PictureShape], numbers: Sequence[int]) -> list[list[int]]:
    """Returns the numbers in groups of pictures of one shape."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number in numbers:
        groups.setdefault((pictures[number].height, pictures[number].width), []).append(number)
    return list(groups.values())
