"""Continuous batching: a prompt takes the place of an answer that has ended, while the others go on.

Rows know nothing of each other: each has its own length, its own end and its own draws, so that an answer depends on
its prompt and its seed alone.

Dimensions: S prompt, V vocabulary, N tiles, F features at image positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from neva.distributed import cuda_on_cpu
from neva.inference.continuation import Continuation, Limits
from neva.inference.decoder import Decoder
from neva.inference.sampling import Sampling, next_tokens
from neva.model.llava import NevaModel


@dataclass(frozen=True)
class Prompt:
    """Token ids [S], `IMAGE_TOKEN_ID` at image positions, and the pixels [N, 3, height, width] of the images' tiles.

    `feature_order` is that of `neva.data.batch.Batch`.
    """

    input_ids: Tensor
    pixel_values: Tensor
    feature_order: Tensor | None = None


class ContinuousBatch:
    """Answers that grow together, a row each; see the module.

    Args:
        decoder: the model.
        rows: how many at a time.
        limits: how tokens are chosen and where answers end.
    """

    def __init__(self, decoder: Decoder, rows: int, limits: Limits) -> None:
        self.decoder, self.cache = decoder, decoder.cache(rows)
        self.rows, self.limits = rows, limits

    def answers(self, continuations: Iterable[Continuation]) -> Iterator[tuple[int, list[int]]]:
        """Yields the number and the ids of each answer, as they end; prompts are taken as rows become free."""
        waiting = iter(continuations)
        running = list(islice(waiting, self.rows))
        fresh = list(range(len(running)))
        while running:
            if fresh:
                self._begin(fresh, [running[row] for row in fresh])
            else:
                self._go_on(running)
            ended = [row for row, continuation in enumerate(running) if continuation.has_ended]
            yield from ((running[row].number, running[row].answer) for row in ended)
            fresh = self._refill(running, ended, waiting)

    def _refill(
        self, running: list[Continuation], ended: Sequence[int], waiting: Iterator[Continuation]
    ) -> list[int]:
        """Returns the rows that hold new prompts; where none is left, the last rows take the places of ended ones."""
        fresh, left = [], []
        for row in ended:
            if (continuation := next(waiting, None)) is None:
                left.append(row)
            else:
                running[row] = continuation
                fresh.append(row)
        for row in reversed(left):
            last = running.pop()
            if row < len(running):
                self.cache.move(len(running), row)
                running[row] = last
        return fresh

    @torch.inference_mode()
    def _begin(self, rows: Sequence[int], continuations: Sequence[Continuation]) -> None:
        with cuda_on_cpu.suspended():
            logits = self.decoder.prefill(
                self.cache,
                rows,
                [continuation.input_ids for continuation in continuations],
                [continuation.features for continuation in continuations],
                self.limits.max_new_tokens,
            )
            for continuation in continuations:
                self._prepare(continuation, logits)
            self._choose(continuations, logits)

    @torch.inference_mode()
    def _go_on(self, running: Sequence[Continuation]) -> None:
        with cuda_on_cpu.suspended():
            tokens = [continuation.answer[-1] for continuation in running]
            positions = [len(row.input_ids) + len(row.answer) - 1 for row in running]
            self._choose(running, self.decoder.decode(self.cache, tokens, positions))

    def _prepare(self, continuation: Continuation, logits: Tensor) -> None:
        """Seeds the draws and marks the tokens of the prompt, where the sampling asks for them."""
        sampling = self.limits.sampling
        if not sampling.greedy:
            continuation.draws = torch.Generator(logits.device).manual_seed(continuation.seed)
        if sampling.repetition_penalty != 1.0:
            text = continuation.input_ids[continuation.input_ids >= 0]
            continuation.seen_V = torch.zeros(logits.size(1), dtype=torch.bool, device=logits.device)
            continuation.seen_V[text] = True

    def _choose(self, continuations: Sequence[Continuation], logits: Tensor) -> None:
        """Adds a token to each answer."""
        limits = self.limits
        short = [row for row, c in enumerate(continuations) if len(c.answer) < limits.min_new_tokens]
        if short and limits.end_ids:
            logits[torch.tensor(short)[:, None], torch.tensor(list(limits.end_ids))] = -torch.inf
        seen = [c.seen_V for c in continuations if c.seen_V is not None]
        draws = [c.draws for c in continuations if c.draws is not None]
        tokens = next_tokens(logits, torch.stack(seen) if seen else None, limits.sampling, draws or None)
        for continuation, token in zip(continuations, tokens.tolist(), strict=True):
            if continuation.seen_V is not None:
                continuation.seen_V[token] = True
            continuation.add(token, limits)


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
    rows: int | None = None,
) -> list[list[int]]:
    """Continues prompts of any lengths and numbers of images, several at a time.

    Args:
        model: a complete model (one pipeline stage) in eval mode.
        prompts: what is continued.
        sampling, max_new_tokens, min_new_tokens, end_ids: see `Limits`.
        is_finished: whether an answer, given as its ids, ends here.
        seeds: one a prompt; the same seed draws the same answer in any batch.
        device: of the model.
        rows: how many grow at a time; None: all.

    Returns:
        The ids of each answer.
    """
    limits = Limits(sampling, max_new_tokens, min_new_tokens, end_ids)
    asked = (
        Continuation(
            number,
            prompt.input_ids.to(device),
            encode(model, prompt.pixel_values.to(device), prompt.feature_order),
            seed,
            is_finished,
        )
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    )
    answers = dict(ContinuousBatch(Decoder(model), rows or len(prompts), limits).answers(asked))
    return [answers[number] for number in range(len(prompts))]


@torch.inference_mode()
def encode(model: NevaModel, pixel_values: Tensor, feature_order: Tensor | None = None) -> Tensor:
    """Returns the features [F, D] of tiles [N, 3, height, width], of which there may be none."""
    if len(pixel_values) == 0:
        return pixel_values
    order = None if feature_order is None else feature_order.to(pixel_values.device)
    with cuda_on_cpu.suspended():
        return model.encode_images(pixel_values, order)
