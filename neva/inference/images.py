"""Images and videos of prompts: each is read and encoded once, however many prompts show it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from concurrent.futures import Executor, Future

import torch
from torch import Tensor

from neva.data.collate import feature_order, picture_shapes
from neva.data.media.placeholders import (
    Medium,
    MediumKey,
    as_images,
    image_media,
    media_in_order,
    pieces_of,
)
from neva.errors import DataError
from neva.families.media_tokens import MediumLayout
from neva.inference.generate import encode
from neva.inference.load import Assistant
from neva.inference.prompts import Request
from neva.templates.template import Turn

_KEPT = 64
"""Media whose features wait for another prompt; one that comes back later than that is encoded again."""


class SharedMedia:
    """The media of a set of requests.

    Args:
        assistant: the model.
        requests: all that will be asked, in order.
        pool: reads files.
    """

    def __init__(self, assistant: Assistant, requests: Iterable[Request], pool: Executor) -> None:
        self._assistant = assistant
        self._pool = pool
        self._uses = Counter(self._key(medium) for request in requests for medium in _sources(request))
        self._layouts: dict[MediumKey, MediumLayout] = {}
        self._pixels: dict[MediumKey, Future[Tensor | DataError]] = {}
        self._features: OrderedDict[MediumKey, Tensor | DataError] = OrderedDict()

    def question(self, request: Request) -> tuple[str, list[int]]:
        """Returns a question with an `<image>` for each piece of its media, and the positions of each piece.

        Raises:
            DataError: a medium cannot be read, or placeholders and media differ in number.
        """
        layouts = [self._layout(medium) for medium in _media(request)]
        (turn,) = as_images([Turn("human", request.question)], layouts)
        return turn.text or "", pieces_of(layouts)

    def _layout(self, medium: Medium) -> MediumLayout:
        if self._key(medium) not in self._layouts:
            self._layouts[self._key(medium)] = self._assistant.media.layout(medium)
        return self._layouts[self._key(medium)]

    def _key(self, medium: Medium) -> MediumKey:
        """Returns what a medium is known by; whether an image is alone matters where such a one is cut otherwise."""
        matters = self._assistant.media.rules.tiling.cuts_one_alone
        return (medium if matters else medium._replace(is_alone=True)).key

    def prepare(self, request: Request) -> None:
        """Begins to read the media of a request that will come soon."""
        for medium in _media(request):
            if self._key(medium) not in self._features and self._key(medium) not in self._pixels:
                layout = self._layout(medium)
                self._pixels[self._key(medium)] = self._pool.submit(_pixels, self._assistant, medium, layout)

    def features(self, request: Request) -> Tensor | DataError:
        """Returns the features [F, D] of a prepared request's media, or why one of them cannot be read."""
        self.prepare(request)
        keys = [self._key(medium) for medium in _media(request)]
        self._encode({key: self._pixels.pop(key) for key in keys if key in self._pixels})
        found = [self._features[key] for key in keys]
        self._forget(keys)
        for features in found:
            if isinstance(features, DataError):
                return features
        return torch.cat(found) if found else torch.empty(0)  # type: ignore[arg-type]

    def _encode(self, loading: dict[MediumKey, Future[Tensor | DataError]]) -> None:
        loaded = {key: future.result() for key, future in loading.items()}
        self._features |= {key: pixels for key, pixels in loaded.items() if isinstance(pixels, DataError)}
        good = {key: pixels for key, pixels in loaded.items() if not isinstance(pixels, DataError)}
        if not self._assistant.model.pre_process:  # the first pipeline stage has the tower
            self._features |= dict.fromkeys(good, torch.empty(0))
        elif good:
            pixels = torch.cat(list(good.values())).to(self._assistant.device)
            layouts = [self._layouts[key] for key in good]
            features = encode(self._assistant.model, pixels, feature_order(layouts), picture_shapes(layouts))
            self._features |= zip(good, features.split([layout.tokens for layout in layouts]), strict=True)

    def _forget(self, keys: Iterable[MediumKey]) -> None:
        """Drops what no prompt shows any more, and the oldest of the rest."""
        for key in keys:
            self._uses[key] -= 1
            if self._uses[key] <= 0:
                self._features.pop(key, None)
                self._layouts.pop(key, None)
        while len(self._features) > _KEPT:
            self._features.popitem(last=False)


def _sources(request: Request) -> list[Medium]:
    """Returns the media that a request names, in no order."""
    videos = [Medium("video", video) for video in request.videos]
    return [*image_media(request.images), *videos]


def _media(request: Request) -> list[Medium]:
    return media_in_order([Turn("human", request.question)], request.images, request.videos)


def _pixels(assistant: Assistant, medium: Medium, layout: MediumLayout) -> Tensor | DataError:
    try:
        return assistant.media.pixels(medium, layout)
    except DataError as error:
        return error
