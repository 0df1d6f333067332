"""The batches that both sides of a comparison of training steps are given."""

from __future__ import annotations

import torch

from bench.llava_data import draw_lengths
from bench.small_llava import Shape
from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.batch import Batch
from neva.data.collate import collate

EVEN, MIXED, GROUPED = "even", "mixed", "grouped"
MICRO_BATCH = 4
SAMPLES = {EVEN: MICRO_BATCH, MIXED: 16, GROUPED: 16}
"""Of a step."""
TEXT = 192
"""Tokens beside the image of a sample of an even batch."""
ANSWER_SHARE = 1 / 3
"""Of its text, as in LLaVA's instruction data."""


def micro_batches(shape: Shape, kind: str, are_sorted: bool) -> list[Batch]:
    """Returns those of a step, which is the same however its samples are sorted.

    Args:
        shape: of the model.
        kind: one of `SAMPLES`; the samples of an even batch are of one length, of the others some have no image.
        are_sorted: whether samples of similar length stand in one micro batch, else they stand as they are drawn.
    """
    if kind == EVEN:
        return [_even(shape)]
    count = SAMPLES[kind]
    lengths, draw = draw_lengths(count, seed=0), torch.Generator().manual_seed(0)
    rows = [[lengths.sample(number, shape, draw)] for number in range(count)]
    together = count if are_sorted else MICRO_BATCH  # those of a call are sorted
    return [
        micro
        for first in range(0, count, together)
        for micro in collate(rows[first : first + together], MICRO_BATCH, 0, 8, same_length=False)
    ]


def _even(shape: Shape) -> Batch:
    """Returns ids [B, S], shifted labels [B, S] and pixels [B, 3, side, side]: an image, a question, an answer."""
    draw = torch.Generator().manual_seed(0)
    side, tokens = shape.vision.image_size, shape.vision.num_tokens
    text = torch.randint(3, shape.language.vocab_size, (MICRO_BATCH, TEXT), generator=draw)
    input_ids = torch.cat([torch.full((MICRO_BATCH, tokens), IMAGE_TOKEN_ID), text], dim=1)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    answer = int(TEXT * ANSWER_SHARE)
    labels[:, -answer - 1 : -1] = input_ids[:, -answer:]
    pixels = torch.randn(MICRO_BATCH, 3, side, side, generator=draw)
    return Batch(input_ids, labels, pixels, [""] * MICRO_BATCH, input_ids.numel())
