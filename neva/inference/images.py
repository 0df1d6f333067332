"""Images of prompts: each is read and encoded once, however many prompts show it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from neva.config.model_config import turns_images
from neva.data.media.image import load_image
from neva.data.media.processor import to_pixels
from neva.errors import DataError
from neva.inference.generate import encode
from neva.inference.load import Assistant
from neva.inference.prompts import ImageInput, Request

_KEPT = 64
"""Images whose features wait for another prompt; one that comes back later than that is encoded again."""


class SharedImages:
    """The images of a set of requests.

    Args:
        assistant: the model.
        requests: all that will be asked, in order.
        pool: reads files.
    """

    def __init__(self, assistant: Assistant, requests: Iterable[Request], pool: Executor) -> None:
        self._assistant = assistant
        self._pool = pool
        self._uses = Counter(_key(image) for request in requests for image in request.images)
        self._pixels: dict[Path | int, Future[Tensor | DataError]] = {}
        self._features: OrderedDict[Path | int, Tensor | DataError] = OrderedDict()

    def prepare(self, request: Request) -> None:
        """Begins to read the images of a request that will come soon."""
        for image in request.images:
            key = _key(image)
            if key not in self._features and key not in self._pixels:
                self._pixels[key] = self._pool.submit(_pixels, self._assistant, image)

    def features(self, request: Request) -> Tensor | DataError:
        """Returns the features [N, P, D] of a prepared request's images, or why one of them cannot be read."""
        self.prepare(request)
        self._encode(
            {key: self._pixels.pop(key) for image in request.images if (key := _key(image)) in self._pixels}
        )
        found = [self._features[_key(image)] for image in request.images]
        self._forget(request)
        for features in found:
            if isinstance(features, DataError):
                return features
        return torch.cat(found) if found else torch.empty(0)  # type: ignore[arg-type]

    def _encode(self, loading: dict[Path | int, Future[Tensor | DataError]]) -> None:
        loaded = {key: future.result() for key, future in loading.items()}
        self._features |= {key: pixels for key, pixels in loaded.items() if isinstance(pixels, DataError)}
        good = {key: pixels for key, pixels in loaded.items() if not isinstance(pixels, DataError)}
        if good:
            pixels = torch.stack(list(good.values())).to(self._assistant.device)
            self._features |= zip(good, encode(self._assistant.model, pixels).split(1), strict=True)

    def _forget(self, request: Request) -> None:
        """Drops what no prompt shows any more, and the oldest of the rest."""
        for image in request.images:
            key = _key(image)
            self._uses[key] -= 1
            if self._uses[key] <= 0:
                self._features.pop(key, None)
        while len(self._features) > _KEPT:
            self._features.popitem(last=False)


def _key(image: ImageInput) -> Path | int:
    return image if isinstance(image, Path) else id(image)


def _pixels(assistant: Assistant, image: ImageInput) -> Tensor | DataError:
    turns = turns_images(assistant.model_cfg)
    try:
        picture = load_image(image, turns) if isinstance(image, Path) else image.convert("RGB")
    except DataError as error:
        return error
    return pixels_of(assistant, picture)


def pixels_of(assistant: Assistant, picture: Image) -> Tensor:
    """Returns the pixels [3, height, width] of an RGB picture, as the tower was trained with."""
    return to_pixels(picture, assistant.processor, assistant.model_cfg.data.image_aspect_ratio)
