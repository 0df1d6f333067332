"""Images of prompts: each is read and encoded once, however many prompts show it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from pathlib import Path

import torch
from torch import Tensor

from neva.data.collate import feature_order
from neva.errors import DataError
from neva.families.media_tokens import MediumLayout
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
        self._layouts: dict[Path | int, MediumLayout] = {}
        self._pixels: dict[Path | int, Future[Tensor | DataError]] = {}
        self._features: OrderedDict[Path | int, Tensor | DataError] = OrderedDict()

    def tokens(self, request: Request) -> list[int]:
        """Returns the positions of each image of a request.

        Raises:
            DataError: one of them cannot be read.
        """
        return [self._layout(image).tokens for image in request.images]

    def _layout(self, image: ImageInput) -> MediumLayout:
        key = _key(image)
        if key not in self._layouts:
            self._layouts[key] = self._assistant.media.layout(image)
        return self._layouts[key]

    def prepare(self, request: Request) -> None:
        """Begins to read the images of a request that will come soon."""
        for image in request.images:
            key = _key(image)
            if key not in self._features and key not in self._pixels:
                self._pixels[key] = self._pool.submit(_pixels, self._assistant, image, self._layout(image))

    def features(self, request: Request) -> Tensor | DataError:
        """Returns the features [F, D] of a prepared request's images, or why one of them cannot be read."""
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
            pixels = torch.cat(list(good.values())).to(self._assistant.device)
            layouts = [self._layouts[key] for key in good]
            features = encode(self._assistant.model, pixels, feature_order(layouts))
            self._features |= zip(good, features.split([layout.tokens for layout in layouts]), strict=True)

    def _forget(self, request: Request) -> None:
        """Drops what no prompt shows any more, and the oldest of the rest."""
        for image in request.images:
            key = _key(image)
            self._uses[key] -= 1
            if self._uses[key] <= 0:
                self._features.pop(key, None)
                self._layouts.pop(key, None)
        while len(self._features) > _KEPT:
            self._features.popitem(last=False)


def _key(image: ImageInput) -> Path | int:
    return image if isinstance(image, Path) else id(image)


def _pixels(assistant: Assistant, image: ImageInput, layout: MediumLayout) -> Tensor | DataError:
    try:
        return assistant.media.pixels(image, layout)
    except DataError as error:
        return error
