"""What transformers makes of a written folder: answers, logits, ids and pixels.

Dimensions: S sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from neva.config.media import media_rules_of
from neva.convert.hf_layouts import layout_of
from neva.convert.lazy_model import LazyModel
from neva.convert.parity.samples import ROUND_TRIP_TEXTS, ParityInput, native_processor, parity_images
from neva.data.media.processor import to_tile_pixels
from neva.families.values import section
from neva.formats.hf_files import read_config

NEW_TOKENS = 16
OF_MEDIA = ("pixel_values", "image_sizes", "pixel_attention_mask", "batch_num_images", "pixel_values_videos")
"""What of an input transformers' models take beside ids."""


@dataclass(frozen=True)
class ReferenceOutput:
    """An input continued by transformers' greedy answer, with the logits [S, V] of every position."""

    sample: ParityInput
    logits: Tensor
    answer_length: int


def reference_outputs(
    model_class: Any, folder: Path, inputs: Sequence[ParityInput], config_of: Path | None = None
) -> tuple[list[ReferenceOutput], list[str]]:
    """Returns what transformers computes from `folder`, and the tensors that it missed or had no use for.

    `config_of` is the folder with the configuration; None: `folder`.
    """
    model, info = model_class.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
        **({"attn_implementation": "eager"} if _caps_scores(config_of or folder) else {}),
    )
    not_loaded = [
        f"transformers reports {kind.replace('_', ' ')}: {', '.join(sorted(map(str, names))[:5])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (names := info[kind])
    ]
    return greedy_outputs(model.eval(), inputs), not_loaded


def _caps_scores(folder: Path) -> bool:
    """Whether the attention of a folder has a soft cap, which transformers' other implementations leave out."""
    config = read_config(folder)
    return (
        section(config, "text_config").get("attn_logit_softcapping", config.get("attn_logit_softcapping"))
        is not None
    )


@torch.no_grad()
def greedy_outputs(model: Any, inputs: Sequence[ParityInput]) -> list[ReferenceOutput]:
    """Returns greedy answers without the image token: one that stood in an answer would be asked for an image."""
    answered = []
    for sample in inputs:
        given = {name: getattr(sample, name) for name in OF_MEDIA}
        images = {name: value for name, value in given.items() if value is not None}
        never = sample.placeholder_ids or None
        mask = torch.ones_like(sample.input_ids)
        ids = model.generate(
            input_ids=sample.input_ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            suppress_tokens=never,
            **images,
        )
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **images).logits[0].float()
        continued = replace(sample, input_ids=ids)
        answered.append(ReferenceOutput(continued, logits, ids.shape[1] - sample.input_ids.shape[1] + 1))
    return answered


def tokenizer_differences(folder: Path, source: Path, loader: Any = AutoTokenizer) -> list[str]:
    """Returns the texts that transformers' tokenizer of the export encodes otherwise than the native one."""
    exported = loader.from_pretrained(folder, local_files_only=True)
    native = Tokenizer.from_file(str(source / "tokenizer.json"))
    differences = []
    for text in ROUND_TRIP_TEXTS:
        expected = native.encode(text, add_special_tokens=False).ids
        found = exported(text, add_special_tokens=False)["input_ids"]
        if found != expected:
            differences.append(f"the tokenizer gives {found} for {text!r}, the native one {expected}")
    return differences


def image_processor_differences(model: LazyModel, processor: Any) -> list[str]:
    """Returns the pictures whose pixels from the export are not bit-equal to those that training saw."""
    native = native_processor(model)
    differences = []
    for image in parity_images(model.vision.side):
        found = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        expected = _seen_in_training(model, native, image)
        if found.shape != expected.shape:
            differences.append(
                f"pixels of a picture of {image.size} have shape {[*found.shape]}, training saw {[*expected.shape]}"
            )
        elif largest := (found - expected).abs().max().item():
            differences.append(f"pixels of a picture of {image.size} differ by {largest}")
    return differences


def _seen_in_training(model: LazyModel, native: Any, image: Image.Image) -> Tensor:
    if layout_of(model).has_tiles:
        grid = media_rules_of(model.config, model.vision).image(*image.size).grid
        assert grid is not None
        return to_tile_pixels(image, native, grid, model.vision.side, pads=True)[None]
    if model.config.data.image_aspect_ratio == "pad":
        image = _on_square(image, tuple(int(mean * 255) for mean in native.image_mean))
    pixels: Tensor = native(image, return_tensors="pt")["pixel_values"]
    return pixels


def _on_square(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
