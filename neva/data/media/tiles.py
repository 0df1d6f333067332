"""From an image to the tiles of a grid.

Sources: transformers' image processors of LLaVA-NeXT and of GOT-OCR2, which InternVL uses; the pixels are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from PIL import Image
from PIL.Image import Resampling

from neva.families.tiling import TileGrid

LARGEST_BETWEEN = 2**26
"""Pixels between the two directions of a resize; with more, the direction that shrinks most comes first."""


def cut_into_tiles(
    image: Image.Image, grid: TileGrid, tile_size: int, pads: bool, resample: Resampling
) -> Iterator[Image.Image]:
    """Yields the tiles of an RGB image, row by row, the whole image squeezed into one in front of or behind them.

    Args:
        image: what is cut.
        grid: rows and columns.
        tile_size: pixels of a side.
        pads: the image keeps its aspect ratio, centred on black; otherwise it is stretched.
        resample: Pillow's filter.
    """
    if grid.whole == "first":
        yield stretched(image, (tile_size, tile_size), resample)
    size = grid.columns * tile_size, grid.rows * tile_size
    canvas = _padded(image, size, resample) if pads else stretched(image, size, resample)
    for row in range(grid.rows):
        for column in range(grid.columns):
            left, top = column * tile_size, row * tile_size
            yield canvas.crop((left, top, left + tile_size, top + tile_size))
    if grid.whole == "last":
        yield stretched(image, (tile_size, tile_size), resample)


def stretched(image: Image.Image, size: tuple[int, int], resample: Resampling) -> Image.Image:
    """Returns the image at another width and height, in memory that its length does not raise."""
    if image.size == size:
        return image
    if size[0] * image.height > LARGEST_BETWEEN:
        image = image.resize((image.width, size[1]), resample)
    return image.resize(size, resample)


def _padded(image: Image.Image, size: tuple[int, int], resample: Resampling) -> Image.Image:
    """Returns the image as large as fits into a canvas, centred on it, black around."""
    width, height = size
    across, down = width / image.width, height / image.height
    if across < down:
        inner = width, min(math.ceil(image.height * across), height)
    else:
        inner = min(math.ceil(image.width * down), width), height
    canvas = Image.new("RGB", size)
    canvas.paste(stretched(image, inner, resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas
