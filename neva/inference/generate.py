"""Batched generation with a key-value cache, exact for prompts of different lengths.

Prompts are padded on the right. Behind the longest prompt, each row's answer continues in common cache slots,
but at the row's own positions, and no query sees padding: the numbers are those of a batch of one.

Dimensions: B batch, S padded prompt, K cache slots, V vocabulary, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from neva.inference.sampling import Sampling, next_tokens
from neva.model.llava import NevaModel


@dataclass(frozen=True)
class Prompt:
    """Token ids [S], `IMAGE_TOKEN_ID` at image positions, and the images' pixels [N, 3, height, width]."""

    input_ids: Tensor
    pixel_values: Tensor


class Slots:
    """Where each row's tokens lie in the cache: prompts at their positions, answers behind the longest prompt."""

    def __init__(self, lengths_B: Tensor, max_new_tokens: int, window: int | None) -> None:
        self.lengths_B = lengths_B
        self.prompt_slots = int(lengths_B.max())
        self.window = window
        prompt = torch.arange(self.prompt_slots, device=lengths_B.device)[:, None].expand(-1, len(lengths_B))
        answer = torch.arange(max_new_tokens, device=lengths_B.device)[:, None] + lengths_B
        self.positions_KB = torch.cat([prompt, answer])
        self.is_padding_BK = (self.positions_KB >= lengths_B).t().clone()
        self.is_padding_BK[:, self.prompt_slots :] = False
        self.needs_mask = bool(self.is_padding_BK.any()) or (
            window is not None and len(self.positions_KB) > window
        )

    def mask(self, first_slot: int, num_slots: int) -> Tensor | None:
        """Returns the bool mask [B, 1, num_slots, K so far] of the queries in these slots; None: causal will do."""
        if not self.needs_mask:
            return None
        end = first_slot + num_slots
        queries, keys = self.positions_KB[first_slot:end].t(), self.positions_KB[:end].t()
        distance_BQK = queries[:, :, None] - keys[:, None, :]
        visible = (distance_BQK >= 0) & ~self.is_padding_BK[:, None, :end]
        if self.window is not None:
            visible &= distance_BQK < self.window
        # a padding query sees at least itself: a row without keys would be NaN, though nobody reads it
        slots = torch.arange(end, device=visible.device)
        return (visible | (slots == slots[first_slot:, None]))[:, None]


@torch.inference_mode()
def generate(
    model: NevaModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    max_new_tokens: int,
    min_new_tokens: int,
    end_ids: Collection[int],
    is_finished: Callable[[list[int]], bool],
    seeds: Sequence[int],
    device: torch.device,
) -> list[list[int]]:
    """Continues a batch of prompts.

    Args:
        model: a complete model (one pipeline stage) in eval mode.
        prompts: any lengths and numbers of images.
        sampling: how tokens are chosen.
        max_new_tokens, min_new_tokens: bounds of an answer's length in tokens; below the minimum none of `end_ids` is
            taken.
        end_ids: tokens that end an answer; they are not part of it.
        is_finished: whether an answer, given as its ids, ends here (end strings).
        seeds: one a prompt; the same seed draws the same answer in any batch.
        device: of the model.

    Returns:
        The ids of each answer.
    """
    lengths_B = torch.tensor([len(prompt.input_ids) for prompt in prompts], device=device)
    input_ids = pad_sequence([prompt.input_ids for prompt in prompts], batch_first=True).to(device)
    slots = Slots(lengths_B, max_new_tokens, model.language_model.window)
    cache = StaticInferenceContext(len(prompts), len(slots.positions_KB))
    answers = GenerationState(len(prompts), end_ids, min_new_tokens, is_finished)
    generators = None if sampling.greedy else [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def logits_of(ids: Tensor, pixel_values: Tensor | None, last_positions: Tensor) -> Tensor:
        return model(
            ids,
            pixel_values,
            attention_mask=slots.mask(cache.sequence_len_offset, ids.size(1)),
            inference_context=cache,
            slot_positions=slots.positions_KB,
            last_positions=last_positions,
        )

    pixel_values = torch.cat([prompt.pixel_values for prompt in prompts]).to(device)
    logits_BV = logits_of(input_ids, pixel_values, lengths_B - 1)
    seen_BV = seen_tokens(input_ids, lengths_B, logits_BV.size(-1))
    for count in range(max_new_tokens):
        if count < min_new_tokens:
            logits_BV[:, list(end_ids)] = -torch.inf
        tokens_B = next_tokens(logits_BV, seen_BV, sampling, generators)
        if not answers.add(tokens_B.tolist()) or count + 1 == max_new_tokens:
            break
        seen_BV.scatter_(1, tokens_B[:, None], True)
        cache.sequence_len_offset = slots.prompt_slots + count
        logits_BV = logits_of(tokens_B[:, None], None, torch.zeros_like(lengths_B))
    return answers.ids


class GenerationState:
    """The answers of a batch while they grow."""

    def __init__(
        self,
        count: int,
        end_ids: Collection[int],
        min_new_tokens: int,
        is_finished: Callable[[list[int]], bool],
    ) -> None:
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.running = [True] * count
        self.end_ids = end_ids
        self.min_new_tokens = min_new_tokens
        self.is_finished = is_finished

    def add(self, tokens: list[int]) -> bool:
        """Adds one token to each answer that still runs; returns whether one of them goes on."""
        for row, token in enumerate(tokens):
            if not self.running[row]:
                continue
            is_end = token in self.end_ids
            if not is_end:
                self.ids[row].append(token)
            is_long = len(self.ids[row]) >= self.min_new_tokens
            self.running[row] = not is_end and not (is_long and self.is_finished(self.ids[row]))
        return any(self.running)


def seen_tokens(input_ids_BS: Tensor, lengths_B: Tensor, vocab_size: int) -> Tensor:
    """Returns bool [B, V]: which tokens each prompt contains, images and padding aside."""
    positions = torch.arange(input_ids_BS.size(1), device=input_ids_BS.device)
    counts = (positions < lengths_B[:, None]) & (input_ids_BS >= 0)
    seen = torch.zeros(len(lengths_B), vocab_size, dtype=torch.int, device=input_ids_BS.device)
    return seen.scatter_add_(1, input_ids_BS.clamp(min=0), counts.int()) > 0
