"""JPEG files by libjpeg-turbo straight into an array, which takes a half to two thirds of Pillow's time.

The pixels are Pillow's, which calls the same library. What is not plainly three colours is left to Pillow, and so is
what does not decode: it has the last word on broken files.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import BinaryIO, Literal, TypeAlias

from PIL import Image

logger = logging.getLogger(__name__)

JpegDecoder: TypeAlias = Literal["pillow", "simplejpeg"]


def available(decoder: JpegDecoder) -> JpegDecoder:
    """Returns the decoder, or Pillow with a warning where its library is not installed."""
    if decoder == "simplejpeg" and importlib.util.find_spec("simplejpeg") is None:
        logger.warning(
            "model.data.jpeg_decoder=simplejpeg needs the package simplejpeg, which is not installed "
            "(pip install 'neva[jpeg]'): Pillow decodes, to the same pixels"
        )
        return "pillow"
    return decoder


def decoded(image: Image.Image, file: BinaryIO) -> Image.Image | None:
    """Returns what Pillow would decode an opened image to; None: let Pillow do it.

    Args:
        image: just opened, not decoded.
        file: that it was opened from.
    """
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    from simplejpeg import decode_jpeg

    position = file.tell()
    file.seek(0)
    try:
        pixels = decode_jpeg(file.read())
    except ValueError:  # the library's one error, for warnings too
        file.seek(position)
        return None
    found = Image.fromarray(pixels)
    found.format = image.format
    return found
