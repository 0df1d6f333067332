"""Answers to requests, in batches of prompts of similar length; the next batch is read while this one runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from neva.config.model_config import turns_images
from neva.constants import IMAGE_PLACEHOLDER, IMAGE_TOKEN_ID
from neva.data.media.image import load_image
from neva.data.media.processor import to_pixels
from neva.errors import DataError, SampleError
from neva.inference.generate import Prompt, generate
from neva.inference.load import Assistant
from neva.inference.prompts import ImageInput, Request
from neva.inference.sampling import Sampling

_BATCHES_SORTED_TOGETHER = 16


@dataclass(frozen=True)
class Answer:
    """What the model says, and the whole text with its prompt, each image as one placeholder."""

    text: str
    full_text: str


def answer_all(
    assistant: Assistant, settings: DictConfig, requests: Mapping[int, Request]
) -> Iterator[dict[int, Answer | DataError]]:
    """Yields the answers, some at a time, in the order of the requests; one that cannot be asked has its error.

    Args:
        assistant: the model.
        settings: the `inference` section.
        requests: by number, which decides how the request's sampling is seeded.
    """
    window, numbers = settings.batch_size * _BATCHES_SORTED_TOGETHER, list(requests)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for first in range(0, len(numbers), window):
            part = {number: requests[number] for number in numbers[first : first + window]}
            answers = _answer_window(assistant, settings, part, pool)
            yield {number: answers[number] for number in part}


def _answer_window(
    assistant: Assistant, settings: DictConfig, requests: Mapping[int, Request], pool: Executor
) -> dict[int, Answer | DataError]:
    answers: dict[int, Answer | DataError] = {}
    ids: dict[int, list[int]] = {}
    for number, request in requests.items():
        try:
            ids[number] = assistant.encoder.prompt(request.question, len(request.images), request.system)
        except SampleError as error:
            answers[number] = error
    order, size = sorted(ids, key=lambda number: len(ids[number])), settings.batch_size
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    loading = [pool.submit(_pixels, assistant, [requests[number] for number in batch]) for batch in batches]
    for batch, loaded in zip(batches, loading, strict=True):
        prompts: dict[int, Prompt] = {}
        for number, pixels in zip(batch, loaded.result(), strict=True):
            if isinstance(pixels, DataError):
                answers[number] = pixels
            else:
                prompts[number] = Prompt(torch.tensor(ids[number]), pixels)
        answers |= _generate(assistant, settings, prompts) if prompts else {}
    return answers


def _pixels(assistant: Assistant, requests: Sequence[Request]) -> list[Tensor | DataError]:
    """Returns [N, 3, height, width] for each request; an image that several of them show is read once."""
    shown = {_key(image): image for request in requests for image in request.images}
    loaded = {key: _image_pixels(assistant, image) for key, image in shown.items()}
    return [_stacked(assistant, [loaded[_key(image)] for image in request.images]) for request in requests]


def _key(image: ImageInput) -> Path | int:
    return image if isinstance(image, Path) else id(image)


def _image_pixels(assistant: Assistant, image: ImageInput) -> Tensor | DataError:
    turns = turns_images(assistant.model_cfg)
    try:
        picture = load_image(image, turns) if isinstance(image, Path) else image.convert("RGB")
    except DataError as error:
        return error
    return to_pixels(picture, assistant.processor, assistant.model_cfg.data.image_aspect_ratio)


def _stacked(assistant: Assistant, images: Sequence[Tensor | DataError]) -> Tensor | DataError:
    for image in images:
        if isinstance(image, DataError):
            return image
    size = assistant.model_cfg.mm_cfg.vision_encoder.image_size
    return torch.stack(list(images)) if images else torch.empty(0, 3, size, size)  # type: ignore[arg-type]


def _generate(assistant: Assistant, settings: DictConfig, prompts: Mapping[int, Prompt]) -> dict[int, Answer]:
    """Returns the answers to one batch."""
    ends = (*settings.end_strings, *assistant.encoder.end_strings)

    def is_finished(ids: list[int]) -> bool:
        text = assistant.tokenizer.decode(ids, skip_special_tokens=False)
        return any(end in text for end in ends)

    found = generate(
        assistant.model,
        list(prompts.values()),
        Sampling(
            settings.greedy, settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty
        ),
        max_new_tokens=settings.tokens_to_generate,
        min_new_tokens=settings.min_tokens_to_generate,
        end_ids=assistant.encoder.end_ids,
        is_finished=is_finished if ends else lambda _: False,
        seeds=[settings.seed + number for number in prompts],
        device=assistant.device,
    )
    answers = {}
    for (number, prompt), ids in zip(prompts.items(), found, strict=True):
        text = _cut(_decode(assistant, ids), ends)
        answers[number] = Answer(text.strip(), _readable(assistant, prompt.input_ids.tolist()) + text)
    return answers


def _cut(text: str, end_strings: Sequence[str]) -> str:
    """Returns the text in front of the first end string."""
    return text[: min((text.find(end) for end in end_strings if end in text), default=len(text))]


def _decode(assistant: Assistant, ids: list[int]) -> str:
    return str(assistant.tokenizer.decode(ids, skip_special_tokens=True))


def _readable(assistant: Assistant, ids: list[int]) -> str:
    """Returns the prompt as text, the positions of each image as one placeholder."""
    text, start = "", 0
    while IMAGE_TOKEN_ID in ids[start:]:
        image_at = ids.index(IMAGE_TOKEN_ID, start)
        text += _decode(assistant, ids[start:image_at]) + IMAGE_PLACEHOLDER
        start = image_at + assistant.encoder.image_tokens
    return text + _decode(assistant, ids[start:])
