"""From image files to 8-bit RGB."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from PIL.Image import Transpose

from neva.data.media.jpeg import JpegDecoder, decoded
from neva.errors import DataError, SampleError
from neva.formats.stored_file import StoredFile

PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20  # editors and generators write a picture's whole history beside it

NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What is at a path, or on the way to it, is no file."""

ORIENTATION, SIDEWAYS = 0x0112, range(5, 9)
"""EXIF's tag of how an image is turned, and the values that change places of width and height."""
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What turns it back, by the tag's value."""


def load_image(
    path: Path | StoredFile, exif_transpose: bool = False, jpeg_decoder: JpegDecoder = "pillow"
) -> Image.Image:
    """Reads an image as 8-bit RGB.

    Transparency is dropped; of 16-bit grey the high byte is kept.

    Args:
        path: the file, or its content.
        exif_transpose: turn the image by its EXIF orientation, as transformers' loaders do and LLaVA does not.
        jpeg_decoder: what decodes JPEG files; the pixels are the same.

    Raises:
        SampleError: the file is missing or broken.
        DataError: this machine cannot read it.
    """
    with _one_sentence(path), path.open("rb") as file, Image.open(file) as image:
        is_faster = jpeg_decoder == "simplejpeg" and not (exif_transpose and _is_turned(image))
        if is_faster and (found := decoded(image, file)) is not None:
            return found
        return _to_rgb(_turned(image) if exif_transpose else image)


def decode_image(data: bytes, exif_transpose: bool, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    """Returns an encoded image that somebody sent as 8-bit RGB, as `load_image` does.

    Args:
        data: the encoded image.
        exif_transpose: as for `load_image`.
        formats: PIL's names of those that are decoded; its other decoders never see the data.
        max_pixels: more are refused before they are decoded.

    Raises:
        SampleError: it is of none of the formats, broken, or larger.
    """
    try:
        with Image.open(BytesIO(data), formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise SampleError(
                    f"found {image.width} x {image.height} pixels, expected at most {max_pixels:,}: scale it down"
                )
            return _to_rgb(_turned(image) if exif_transpose else image)
    except SampleError:
        raise
    except Image.UnidentifiedImageError as error:
        raise SampleError(f"found no image, expected one of {', '.join(formats)}", "broken image") from error
    except Exception as error:  # whatever the format's module raises
        if isinstance(error, MemoryError):
            raise
        raise SampleError(f"cannot be decoded ({type(error).__name__}: {error})", "broken image") from error


def image_size(path: Path | StoredFile, exif_transpose: bool = False) -> tuple[int, int]:
    """Returns width and height of what `load_image` gives, without decoding it; raises what that would."""
    with _one_sentence(path), path.open("rb") as file, Image.open(file) as image:
        is_turned = exif_transpose and image.getexif().get(ORIENTATION, 1) in SIDEWAYS
        return (image.height, image.width) if is_turned else image.size


def require_file(path: Path | StoredFile, medium: str = "image") -> None:
    """Raises what reading a medium would where there is no file to read, without decoding it."""
    with _one_sentence(path, medium), path.open("rb"):
        pass


@contextmanager
def _one_sentence(path: Path | StoredFile, medium: str = "image") -> Iterator[None]:
    """Turns what opening and decoding an image raise into SampleError and DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise SampleError(f"{medium} file {path} does not exist", f"missing {medium}") from error
    # PIL's decoders raise whatever their format module raises: OSError, SyntaxError, struct.error, …
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        code = getattr(error, "errno", None)
        if code in NO_FILE:
            raise SampleError(
                f"{medium} file {str(path):.200} is no file ({os.strerror(code)})", f"missing {medium}"
            ) from error
        if code is not None:
            # Not the file's fault and perhaps not the same on every rank: no reason to skip a record.
            raise DataError(f"{medium} file {path} cannot be read ({os.strerror(code)})") from error
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, Image.UnidentifiedImageError):  # whose text is a name or an address in memory
            what = "it is of no format that is read, as HEIC or the page of a failed download"
        raise SampleError(
            f"{medium} file {path} cannot be decoded ({what}); replace or remove it", f"broken {medium}"
        ) from error


def expand_to_square(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """Centres an image on the smallest square that holds it."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ORIENTATION, 1) != 1


def _turned(image: Image.Image) -> Image.Image:
    """Returns what `ImageOps.exif_transpose` does, which also writes the other tags anew and fails at odd ones."""
    method = TURNS.get(image.getexif().get(ORIENTATION, 1))
    if method is None:
        return image
    turned = image.transpose(method)
    turned.format = image.format
    return turned


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # PIL's own conversion clips at 255, which makes almost every 16-bit image white.
        grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return grey.convert("RGB")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # Same colours as the direct way, which warns.
        image = image.convert("RGBA")
    return image.convert("RGB")
