"""Part of a resized image, to the very pixels that PIL makes of the whole, in memory that its length does not raise.

Source: Pillow, src/libImaging/Resample.c: columns, then rows, weights of 22 bits, 8-bit numbers between. (Where
rows shrink more than columns, Pillow 13 may begin with the rows; that is not done here.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL.Image import Resampling

_BITS = 22


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - distance)


def _cubic(x: np.ndarray) -> np.ndarray:
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


FILTERS: Mapping[Resampling, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    Resampling.BILINEAR: (1.0, _triangle),
    Resampling.BICUBIC: (2.0, _cubic),
}
"""Radius, and weight by distance, of the filters that are known here."""


def resized_middle(
    pixels: np.ndarray,
    canvas: tuple[int, int],
    background: tuple[int, ...],
    target: tuple[int, int],
    crop: tuple[int, int],
    resample: Resampling,
) -> np.ndarray:
    """Returns the middle of an image that is centred on a canvas, a square one or its own size, and resized with it.

    It is equal to PIL's where both directions grow or the canvas and its target are squares.

    Args:
        pixels: the image, uint8 [height, width, colours].
        canvas: width and height of what is resized.
        background: its colour.
        target: width and height after resizing.
        crop: largest width and height of the middle that is returned.
        resample: one of `FILTERS`.
    """
    size = pixels.shape[1], pixels.shape[0]
    offset = (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2
    colour = np.array(background, dtype=np.int64)
    columns = pixels.swapaxes(0, 1)
    nothing = columns[:0, :1]
    kept = _middle(target[0], crop[0])
    resized = _resample(columns, offset[0], canvas[0], target[0], kept, colour, resample)
    edge = _resample(nothing, 0, canvas[0], target[0], kept, colour, resample)[:, 0]
    rows = resized.swapaxes(0, 1)
    return _resample(rows, offset[1], canvas[1], target[1], _middle(target[1], crop[1]), edge, resample)


def _resample(
    lines: np.ndarray,
    offset: int,
    length: int,
    new_length: int,
    kept: range,
    background: np.ndarray,
    resample: Resampling,
) -> np.ndarray:
    """Returns the lines `kept` of `new_length` that `length` become, of which `lines` begin at `offset`."""
    result = np.empty((len(kept), *lines.shape[1:]), dtype=np.uint8)
    for row, number in enumerate(kept):
        first, weights = _weights(length, new_length, number, resample)
        low = min(max(first, offset), offset + len(lines))
        high = max(low, min(first + len(weights), offset + len(lines)))
        inside = weights[low - first : high - first] if high > low else weights[:0]
        total = np.tensordot(inside, lines[low - offset : high - offset].astype(np.int64), axes=1)
        total = total + (weights.sum() - inside.sum()) * background + (1 << (_BITS - 1))
        result[row] = np.clip(total >> _BITS, 0, 255)
    return result


def _weights(length: int, new_length: int, number: int, resample: Resampling) -> tuple[int, np.ndarray]:
    """Returns the first line that a new line is made of, and the weights of it and those behind it."""
    radius, weight = FILTERS[resample]
    scale = length / new_length
    stretch = max(1.0, scale)
    support, centre = radius * stretch, (number + 0.5) * scale
    first = max(0, int(centre - support + 0.5))
    last = min(length, int(centre + support + 0.5))
    found = weight(np.abs((np.arange(first, last) - centre + 0.5) * (1.0 / stretch)))
    scaled = found / found.sum() * (1 << _BITS)
    return first, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)


def _middle(length: int, kept: int) -> range:
    """Returns where transformers' `center_crop` to `kept` finds all that it takes of `length`."""
    first = max(0, (length - kept) // 2)
    return range(first, min(length, first + kept))
