"""Pictures of their own shapes through tower and projector: those of one shape together, none with padding.

Dimensions: E numbers of all pixels, F features of all pictures, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from neva.families.media_tokens import PictureShape
from neva.families.pictures import by_shape, share_out, split_pictures


def encode_pictures(
    pixel_values_E: Tensor,
    pictures: Sequence[PictureShape],
    feature_order: Tensor | None,
    project: Callable[[Tensor], Tensor],
    gather: Callable[[Tensor], Tensor],
    rank: int,
    ranks: int,
) -> Tensor:
    """Returns the features [F, D] of pictures, each of which one rank encodes.

    Args:
        pixel_values_E: all numbers of the first picture, of the second, ….
        pictures: their shapes.
        feature_order: [F, 2], picture and feature of it at each position; None: all of all pictures in their order.
        project: features [N, tokens, D] of pictures [N, 3, height, width].
        gather: what all ranks have of a tensor, one behind the other.
        rank, ranks: this one, and how many share out the pictures.

    Raises:
        ValueError: a picture has another number of features than `pictures` says.
    """
    shares = share_out(pictures, ranks)
    pixels = split_pictures(pixel_values_E, pictures)
    if shares[rank]:
        features = _encode(pixels, pictures, shares[rank], project)
    else:  # a rank without pictures touches tower and projector too, weighted by zero, as a text does
        smallest = min(range(len(pictures)), key=lambda number: pixels[number].numel())
        features = 0.0 * _encode(pixels, pictures, [smallest], project)
    longest = max(sum(pictures[number].features for number in share) for share in shares)
    missing = features.new_zeros(longest - len(features), features.size(1))
    gathered = gather(torch.cat([features, missing]))
    first_of = _first_features(pictures, shares, longest)
    if feature_order is None:
        rows = [
            torch.arange(picture.features) + first for picture, first in zip(pictures, first_of, strict=True)
        ]
        return gathered[torch.cat(rows).to(gathered.device)]
    numbers, places = feature_order.unbind(1)
    return gathered[torch.tensor(first_of, device=gathered.device)[numbers] + places]


def _encode(
    pixels: Sequence[Tensor],
    pictures: Sequence[PictureShape],
    numbers: Sequence[int],
    project: Callable[[Tensor], Tensor],
) -> Tensor:
    """Returns the features [F, D] of the pictures of these numbers, one behind the other."""
    found: dict[int, Tensor] = {}
    for group in by_shape(pictures, numbers):
        features = project(torch.stack([pixels[number] for number in group]))
        told = pictures[group[0]]
        if features.size(1) != told.features:
            raise ValueError(
                f"a picture of {told.height} x {told.width} pixels has {features.size(1)} features, the data counts "
                f"{told.features}; it was made for another tower or projector"
            )
        found |= zip(group, features, strict=True)
    return torch.cat([found[number] for number in numbers])


def _first_features(
    pictures: Sequence[PictureShape], shares: Sequence[Sequence[int]], longest: int
) -> list[int]:
    """Returns where the features of each picture begin among those of all ranks, each of which has `longest` rows."""
    first_of = [0] * len(pictures)
    for rank, share in enumerate(shares):
        ends = accumulate((pictures[number].features for number in share), initial=rank * longest)
        for number, first in zip(share, ends, strict=False):
            first_of[number] = first
    return first_of
