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
from neva.families.media_tokens import PictureShape
from neva.inference.continuation import Continuation, Limits
from neva.inference.hugging_face import AnyDecoder, decoder_of
from neva.inference.sampling import Sampling, next_tokens
from neva.model.llava import NevaModel


@dataclass(frozen=True)
class Prompt:
    """Token ids [S], `IMAGE_TOKEN_ID` at image positions, and the pixels [N, 3, height, width] of the images' tiles.

    Pixels, `feature_order` and `pictures` are those of `neva.data.batch.Batch`.
    """

    input_ids: Tensor
    pixel_values: Tensor
    feature_order: Tensor | None = None
    pictures: Sequence[PictureShape] = ()


class ContinuousBatch:
    """Answers that grow together, a row each; see the module.

    Args:
        decoder: the model.
        rows: how many at a time.
    """

    def __init__(self, decoder: AnyDecoder, rows: int) -> None:
        self.decoder, self.cache, self.rows = decoder, decoder.cache(rows), rows
        self.turning_length = decoder.turning_length
        self.running: list[Continuation] = []

    def answers(self, continuations: Iterable[Continuation]) -> Iterator[Continuation]:
        """Yields those that have their answer, as they end; prompts are taken as rows become free."""
        waiting = iter(continuations)
        while True:
            ended = self.step(waiting)
            if not self.running:
                return
            yield from ended

    def step(self, waiting: Iterator[Continuation]) -> list[Continuation]:
        """Reads prompts where rows are free and some wait; otherwise adds a token to each answer.

        Returns:
            The answers that have ended; until the next step they are among those that run.
        """
        if fresh := self._refill(waiting):
            self._read(fresh)
        elif self.turning_length is not None and (turning := self._turning(self.turning_length)):
            self._read(turning)
        elif self.running:
            self._go_on()
        return [continuation for continuation in self.running if continuation.has_ended]

    def _refill(self, waiting: Iterator[Continuation]) -> list[int]:
        """Returns the rows that hold new prompts; where none is left, the last rows take the places of ended ones."""
        running = self.running
        fresh, left = [], []
        for row in [row for row, continuation in enumerate(running) if continuation.has_ended]:
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
        added = list(islice(waiting, self.rows - len(running)))
        fresh += range(len(running), len(running) + len(added))
        running += added
        return fresh

    def _turning(self, length: int) -> list[int]:
        """Returns the rows whose positions have other angles from this length on (see `Rotary`).

        Prompt and answer are read anew, as transformers does.
        """
        return [row for row, one in enumerate(self.running) if len(one.input_ids) + len(one.answer) == length]

    @torch.inference_mode()
    def _read(self, rows: Sequence[int]) -> None:
        continuations = [self.running[row] for row in rows]
        with cuda_on_cpu.suspended():
            logits = self.decoder.prefill(
                self.cache,
                rows,
                [
                    torch.cat(
                        [continuation.input_ids, continuation.input_ids.new_tensor(continuation.answer)]
                    )
                    for continuation in continuations
                ],
                [continuation.features for continuation in continuations],
                max(continuation.limits.max_new_tokens for continuation in continuations),
                [continuation.prefix_length for continuation in continuations],
            )
            for continuation in continuations:
                if not continuation.answer:
                    _prepare(continuation, logits)
            _choose(continuations, logits)

    @torch.inference_mode()
    def _go_on(self) -> None:
        with cuda_on_cpu.suspended():
            tokens = [continuation.answer[-1] for continuation in self.running]
            positions = [len(row.input_ids) + len(row.answer) - 1 for row in self.running]
            _choose(self.running, self.decoder.decode(self.cache, tokens, positions))


def _prepare(continuation: Continuation, logits: Tensor) -> None:
    """Seeds the draws and marks the tokens of the prompt, where the sampling asks for them."""
    sampling = continuation.limits.sampling
    if not sampling.greedy:
        continuation.draws = torch.Generator(logits.device).manual_seed(continuation.seed)
    if sampling.repetition_penalty != 1.0:
        text = continuation.input_ids[continuation.input_ids >= 0]
        continuation.seen_V = torch.zeros(logits.size(1), dtype=torch.bool, device=logits.device)
        continuation.seen_V[text] = True


def _choose(continuations: Sequence[Continuation], logits: Tensor) -> None:
    """Adds a token to each answer."""
    scores = _scores(continuations, logits)
    for row, continuation in enumerate(continuations):
        limits = continuation.limits
        if len(continuation.answer) < limits.min_new_tokens and limits.end_ids:
            logits[row, list(limits.end_ids)] = -torch.inf
    for row, token in _chosen(continuations, logits):
        continuation = continuations[row]
        if row in scores:
            continuation.score(scores[row], token)
        if continuation.seen_V is not None:
            continuation.seen_V[token] = True
        continuation.add(token)


def _scores(continuations: Sequence[Continuation], logits: Tensor) -> dict[int, Tensor]:
    """Returns the log probabilities [V] of the rows that ask for them, as the model has them: before any rule."""
    rows = [row for row, continuation in enumerate(continuations) if continuation.limits.scores != "none"]
    return dict(zip(rows, logits[rows].float().log_softmax(-1), strict=True)) if rows else {}


def _chosen(continuations: Sequence[Continuation], logits: Tensor) -> list[tuple[int, int]]:
    """Returns rows and their next tokens; those that are sampled in one way are chosen together."""
    found: list[tuple[int, int]] = []
    rows_of: dict[Sampling, list[int]] = {}
    for row, continuation in enumerate(continuations):
        rows_of.setdefault(continuation.limits.sampling, []).append(row)
    for sampling, rows in rows_of.items():
        alike = [continuations[row] for row in rows]
        seen = [c.seen_V for c in alike if c.seen_V is not None]
        draws = [c.draws for c in alike if c.draws is not None]
        tokens = next_tokens(
            logits if len(rows) == len(continuations) else logits[rows],
            torch.stack(seen) if seen else None,
            sampling,
            draws or None,
        )
        found += zip(rows, tokens.tolist(), strict=True)
    return found


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
        model: this rank's pipeline stage in eval mode.
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
            encode(model, prompt.pixel_values.to(device), prompt.feature_order, prompt.pictures),
            limits,
            seed,
            is_finished,
        )
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    )
    batch = ContinuousBatch(decoder_of(model), rows or len(prompts))
    answers = {continuation.number: continuation.answer for continuation in batch.answers(asked)}
    return [answers[number] for number in range(len(prompts))]


@torch.inference_mode()
def encode(
    model: NevaModel,
    pixel_values: Tensor,
    feature_order: Tensor | None = None,
    pictures: Sequence[PictureShape] = (),
) -> Tensor:
    """Returns the features [F, D] of tiles, of which there may be none; see `NevaModel.encode_images`.

    A pipeline stage behind the first has no tower and needs none.
    """
    if len(pixel_values) == 0 or not model.pre_process:
        return pixel_values[:0]
    order = None if feature_order is None else feature_order.to(pixel_values.device)
    with cuda_on_cpu.suspended():
        return model.encode_images(pixel_values, order, pictures)
