"""`neva infer`: prompts from a file through a `.nemo`, one result line each."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from neva.constants import IMAGE_PLACEHOLDER, IMAGE_TOKEN_ID
from neva.data.media.image import load_image
from neva.data.media.processor import to_pixels
from neva.distributed import groups
from neva.errors import ConfigError, SampleError
from neva.inference.generate import Prompt, generate
from neva.inference.load import Assistant, load_assistant
from neva.inference.prompts import Request, answered, read_requests, result_row
from neva.inference.sampling import Sampling
from neva.precision import precision_named

logger = logging.getLogger(__name__)

_BATCHES_SORTED_TOGETHER = 16


def run(cfg: DictConfig) -> Path:
    """Answers the prompts of `cfg.prompt_file` and appends results to `cfg.output_file` as they come.

    A result file that is there is continued behind its last complete line.

    Returns:
        The result file.

    Raises:
        ConfigError: a prompt, an image or a result line that cannot be used, or a part of the model that is missing.
    """
    settings = cfg.inference
    requests = read_requests(
        Path(cfg.prompt_file), Path(settings.images_base_path), settings.insert_image_token
    )
    output_file = Path(cfg.output_file)
    output_file.parent.mkdir(parents=True, exist_ok=True)
    done = answered(output_file, requests)
    if done == len(requests):
        logger.info("%s answers all %s prompts already", output_file, done)
        return output_file
    device = groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), seed=settings.seed)
    try:
        assistant = _assistant(cfg, device)
        with output_file.open("a", encoding="utf-8", buffering=1) as output:
            bar = tqdm(total=len(requests), initial=done, unit="prompt", desc="infer", disable=None)
            for rows in _answer_all(assistant, settings, cfg.neva_model_file, requests, done):
                output.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                bar.update(len(rows))
            bar.close()
    finally:
        groups.destroy()
    return output_file


def _assistant(cfg: DictConfig, device: torch.device) -> Assistant:
    try:
        return load_assistant(
            cfg.neva_model_file,
            device,
            precision_named(cfg.trainer.precision).dtype,
            cfg.base_model_file,
            cfg.vision_encoder_path,
            cfg.tokenizer_type,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _answer_all(
    assistant: Assistant, settings: DictConfig, model_id: str, requests: Sequence[Request], done: int
) -> Iterator[list[dict[str, object]]]:
    """Yields result rows in the order of the prompts.

    Within a window, prompts of similar length go together; the next batch is read from disk while this one runs.
    """
    window = settings.batch_size * _BATCHES_SORTED_TOGETHER
    ends = (*settings.end_strings, *assistant.encoder.end_strings)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for first in range(done, len(requests), window):
            chunk = list(range(first, min(first + window, len(requests))))
            ids = {number: _encode(assistant, number, requests[number]) for number in chunk}
            order = sorted(chunk, key=lambda number: len(ids[number]))
            batches = [
                order[at : at + settings.batch_size] for at in range(0, len(order), settings.batch_size)
            ]
            pixels = [
                pool.submit(_pixels, assistant, [requests[number] for number in batch]) for batch in batches
            ]
            rows: dict[int, dict[str, object]] = {}
            for batch, loaded in zip(batches, pixels, strict=True):
                prompts = [
                    Prompt(torch.tensor(ids[number]), images)
                    for number, images in zip(batch, loaded.result(), strict=True)
                ]
                for number, answer in zip(
                    batch, _generate(assistant, settings, ends, prompts, batch), strict=True
                ):
                    text = _cut(_decode(assistant, answer), ends)
                    full_text = _readable(assistant, ids[number]) + text
                    rows[number] = result_row(requests[number], full_text, text.strip(), model_id)
            yield [rows[number] for number in chunk]


def _encode(assistant: Assistant, number: int, request: Request) -> list[int]:
    try:
        return assistant.encoder.prompt(request.question, len(request.images), request.keys.get("system"))
    except SampleError as error:
        raise ConfigError(f"prompt {number + 1}: {error}") from error


def _pixels(assistant: Assistant, requests: Sequence[Request]) -> list[torch.Tensor]:
    """Returns [N, 3, height, width] for each request; an image that several of them show is read once."""
    aspect_ratio = assistant.model_cfg.data.image_aspect_ratio
    size = assistant.model_cfg.mm_cfg.vision_encoder.image_size
    loaded = {
        image: to_pixels(load_image(image), assistant.processor, aspect_ratio)
        for image in {image for request in requests for image in request.images}
    }
    return [
        torch.stack([loaded[image] for image in request.images])
        if request.images
        else torch.empty(0, 3, size, size)
        for request in requests
    ]


def _generate(
    assistant: Assistant,
    settings: DictConfig,
    ends: Sequence[str],
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
) -> list[list[int]]:
    def is_finished(ids: list[int]) -> bool:
        text = assistant.tokenizer.decode(ids, skip_special_tokens=False)
        return any(end in text for end in ends)

    return generate(
        assistant.model,
        prompts,
        Sampling(
            settings.greedy, settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty
        ),
        max_new_tokens=settings.tokens_to_generate,
        min_new_tokens=settings.min_tokens_to_generate,
        end_ids=assistant.encoder.end_ids,
        is_finished=is_finished if ends else lambda _: False,
        seeds=[settings.seed + number for number in numbers],
        device=assistant.device,
    )


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
