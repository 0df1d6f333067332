"""Samples whose lengths are drawn like those of LLaVA-1.5's second stage, with random tokens.

llava_v1_5_mix665k: 624,610 of its 665,298 samples have one image and 35 tokens of system prompt; their turns are
log-normal with a median of 150 tokens and a mean of 200 (VQA with several questions an image: 450,000; conversations
and descriptions of LLaVA-158k). The others, ShareGPT's, are text with a median of 750 tokens. Samples are cut at 2,048.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bench.small_llava import Shape
from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.dataset import Sample

SAMPLES, WITH_IMAGE = 665_298, 624_610
IMAGE_TOKENS, LONGEST = 576, 2048
FIRST_ID = 3
"""Of the tokens of text; those before have a meaning to one side or the other."""


@dataclass
class Lengths:
    """Tokens of N samples as LLaVA-1.5 would have them."""

    positions: NDArray[np.int64]
    has_image: NDArray[np.bool_]

    def sample(self, number: int, shape: Shape, draw: torch.Generator) -> Sample:
        """Returns one for a model whose images take fewer positions, and its text as many times fewer.

        The last third of the text carries a loss.
        """
        vision, length, has_image = shape.vision, int(self.positions[number]), bool(self.has_image[number])
        image = torch.full((vision.num_tokens * has_image,), IMAGE_TOKEN_ID)
        scaled = max(4, round(length * vision.num_tokens / IMAGE_TOKENS))
        size = (max(3, scaled - len(image)),)
        text = torch.randint(FIRST_ID, shape.language.vocab_size, size, generator=draw)
        ids = torch.cat([text[:2], image, text[2:]])
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[-max(1, len(text) // 3) :] = ids[-max(1, len(text) // 3) :]
        pixels = torch.randn(int(has_image), 3, vision.image_size, vision.image_size, generator=draw)
        return Sample(ids, labels, pixels, "")


def draw_lengths(count: int, seed: int) -> Lengths:
    """Returns `count` samples in random order."""
    draw = np.random.default_rng(seed)
    has_image = draw.random(count) < WITH_IMAGE / SAMPLES
    with_image = IMAGE_TOKENS + 35 + draw.lognormal(np.log(150), 0.76, count)
    text = 35 + draw.lognormal(np.log(750), 0.8, count)
    positions = np.clip(np.where(has_image, with_image, text), 50, LONGEST).astype(np.int64)
    return Lengths(positions, has_image)
