"""Rows that start and end at different times, in a cache in which each has its own length; and the work of a step."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from neva.distributed.cuda_on_cpu import CudaOnCpu
from neva.inference.cache import KeyValueCache
from neva.inference.continuation import Continuation, Limits
from neva.inference.decoder import Decoder
from neva.inference.generate import ContinuousBatch, encode
from neva.inference.linear import VocabularyHead, linear
from neva.inference.rotary import RotaryTable
from neva.model.build import build_model
from tests.inference.test_generate import GREEDY, answers, build, prompts
from tests.model.test_against_transformers import VOCAB, reference_inputs, shapes

SAMPLED = replace(GREEDY, greedy=False, temperature=1.5, top_k=20, top_p=0.95, repetition_penalty=1.2)
MANY_ENDS = list(range(2, 16))


@pytest.mark.parametrize("sliding_window", [None, 9])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_prompt_that_takes_the_row_of_another_answers_as_alone(
    single_process: None, rows: int, sampling: Any, sliding_window: int | None
) -> None:
    model, _, image_tokens = build("clip", sliding_window)
    batch = [*prompts(image_tokens), *prompts(image_tokens)[::-1]]
    settings: dict[str, Any] = {"end_ids": MANY_ENDS, "min_new_tokens": 1, "max_new_tokens": 30}
    expected = [
        answers(model, [prompt], sampling, seeds=[number], **settings)[0]
        for number, prompt in enumerate(batch)
    ]
    assert len({len(answer) for answer in expected}) > 1  # so that rows end at different times
    assert answers(model, batch, sampling, rows=rows, **settings) == expected


def test_answers_of_different_settings_grow_together_as_alone(single_process: None) -> None:
    model, _, image_tokens = build("clip")
    batch, decoder = [*prompts(image_tokens), *prompts(image_tokens)[::-1]], Decoder(model)
    limits = [
        Limits(GREEDY, 9, 0, MANY_ENDS),
        Limits(SAMPLED, 14, 3, MANY_ENDS),
        Limits(replace(SAMPLED, repetition_penalty=1.0), 5, 5, []),
    ]

    def asked() -> list[Continuation]:
        return [
            Continuation(
                row, prompt.input_ids, encode(model, prompt.pixel_values), limits[row % 3], row, lambda _: False
            )
            for row, prompt in enumerate(batch)
        ]  # fmt: skip

    alone = {end.number: end.answer for one in asked() for end in ContinuousBatch(decoder, 1).answers([one])}
    together = {end.number: end.answer for end in ContinuousBatch(decoder, 3).answers(asked())}
    assert together == alone
    assert len(set(map(tuple, alone.values()))) > 3


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_scores_are_the_log_probabilities_of_transformers(single_process: None, sampling: Any) -> None:
    """Of the model, whatever rule chose; float32 sums in two orders differ by some 1e-6."""
    ours, theirs, image_tokens = build("clip")
    limits = Limits(sampling, 6, 4, MANY_ENDS, "all")
    asked = [
        Continuation(row, prompt.input_ids, encode(ours, prompt.pixel_values), limits, row, lambda _: False)
        for row, prompt in enumerate(prompts(image_tokens))
    ]
    for ended in ContinuousBatch(Decoder(ours), 3).answers(asked):
        prompt, tokens = prompts(image_tokens)[ended.number], [score.token for score in ended.scores]
        assert tokens[: len(ended.answer)] == ended.answer and len(tokens) - len(ended.answer) in (0, 1)
        ids = torch.cat([prompt.input_ids, torch.tensor(tokens)])
        inputs = reference_inputs({"input_ids": ids[None], "pixel_values": prompt.pixel_values})
        if len(prompt.pixel_values) == 0:
            del inputs["pixel_values"]
        with torch.no_grad():
            logits = theirs(**inputs).logits[0, len(prompt.input_ids) - 1 : -1, :VOCAB]  # type: ignore[operator]
        expected = logits.log_softmax(-1)
        torch.testing.assert_close(torch.stack(ended.distributions), expected, atol=1e-5, rtol=0)
        chosen = torch.tensor([score.log_prob for score in ended.scores])
        torch.testing.assert_close(chosen, expected[range(len(tokens)), tokens], atol=1e-5, rtol=0)


def test_an_answer_that_is_given_up_makes_room_for_the_next(single_process: None) -> None:
    model, _, image_tokens = build("clip")
    alike = Limits(GREEDY, 12, 0, [])
    first, second, third = [
        Continuation(row, prompt.input_ids, encode(model, prompt.pixel_values), alike, 0, lambda _: False)
        for row, prompt in enumerate(prompts(image_tokens)[:3])
    ]
    expected = answers(model, prompts(image_tokens)[:3], end_ids=[])
    batch = ContinuousBatch(Decoder(model), 2)
    waiting = iter([first, second, third])
    for _ in range(3):
        batch.step(waiting)
    first.has_ended = True
    batch.step(waiting)
    assert batch.running == [third, second] and len(first.answer) == 3
    for _ in range(20):
        batch.step(waiting)
    assert batch.running == [] and [second.answer, third.answer] == expected[1:]
    assert second.is_cut_off and third.is_cut_off


@pytest.mark.parametrize("place", ["key and value", "angle"])
def test_a_token_at_another_position_changes_answers(
    single_process: None, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    model, _, image_tokens = build("clip")
    batch = prompts(image_tokens)
    expected = answers(model, batch)
    slots, at = KeyValueCache.slots, RotaryTable.at

    def one_early(cache: KeyValueCache, rows: Tensor, positions: Tensor) -> Tensor:
        return slots(cache, rows, positions - 1 if len(positions) == len(batch) else positions)

    def turned_less(table: RotaryTable, positions: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        return at(table, positions - 1 if len(positions) == len(batch) else positions, limit)

    if place == "angle":
        monkeypatch.setattr(RotaryTable, "at", turned_less)
    else:
        monkeypatch.setattr(KeyValueCache, "slots", one_early)
    assert answers(model, batch) != expected


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True},
        {"qkv_bias": True, "tied": True},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "num_query_groups": 6},
        {"sliding_window": 5, "num_query_groups": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_decoder_gives_the_logits_of_the_model_in_training(
    single_process: None, changes: dict[str, Any]
) -> None:
    vision, language = shapes("clip", groups=2, tied=False)
    model = build_model(vision, replace(language, **changes), "mlp2x_gelu").eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # norms and biases away from ones and zeros
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    ids = torch.randint(0, VOCAB, (2, 20), generator=draw)
    expected = model(ids, None)
    decoder, starts = Decoder(model), [12, 7]
    with torch.inference_mode():
        cache = decoder.cache(2)
        prompts_ids = [row[:start] for row, start in zip(ids, starts, strict=True)]
        logits = [decoder.prefill(cache, [0, 1], prompts_ids, [torch.empty(0)] * 2, room=8)]
        for step in range(8):
            positions = [start + step for start in starts]
            logits.append(decoder.decode(cache, ids[[0, 1], positions].tolist(), positions))
    for step, found in enumerate(logits):
        rows = expected[[0, 1], [start + step - 1 for start in starts]]
        torch.testing.assert_close(found, rows, atol=1e-5, rtol=1e-5)


def test_a_cache_keeps_its_tokens_while_it_grows_and_rows_move() -> None:
    cache = KeyValueCache(2, 3, 2, 4, torch.float32, torch.device("cpu"))
    stored = torch.randn(3, 2, 2, 4)
    cache.reserve(5)
    cache.write(1, cache.slots(torch.arange(3), torch.tensor([4, 0, 2])), stored)
    cache.reserve(70)
    cache.move(2, 0)
    key, value = cache.read(1, 3, 5)
    assert torch.equal(key[1, :, 0], stored[1, :, 0]) and torch.equal(value[1, :, 0], stored[1, :, 1])
    assert torch.equal(key[0, :, 2], stored[2, :, 0]) and torch.equal(value[0, :, 2], stored[2, :, 1])


@pytest.mark.parametrize("rows", [1, 2, 8, 40])
def test_products_in_the_quick_order_are_those_of_torch(rows: int) -> None:
    hidden, weight = torch.randn(rows, 256), torch.randn(5000, 256)
    expected = torch.nn.functional.linear(hidden, weight)
    # sums of 256 products of about 1, in another order
    torch.testing.assert_close(linear(hidden, weight), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(VocabularyHead(weight)(hidden), expected, atol=1e-4, rtol=0)


class _Counted(TorchDispatchMode):
    """Counts the operators that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


LAYERS = 3
OPERATORS_OF_A_LAYER, OPERATORS_OF_A_STEP = 29, 25
"""Views count too. Megatron's layers and the former cache took 190 for a layer."""
PYTHON_CALLS_OF_A_STEP = 140


def test_a_decoding_step_runs_few_operators(single_process: None) -> None:
    model, _, image_tokens = build("clip")
    one, more = [_counted(model, prompts(image_tokens), tokens) for tokens in (2, 12)]
    of_a_step = (more.total() - one.total()) / 10
    assert of_a_step <= LAYERS * OPERATORS_OF_A_LAYER + OPERATORS_OF_A_STEP
    assert (more - one)["aten.cos.default"] == (more - one)["aten.sin.default"] == 0
    assert (more - one)["aten.sort.default"] == (more - one)["aten._softmax.default"] == 0


def _counted(model: Any, batch: Any, tokens: int) -> Counter[str]:
    counted = _Counted()
    with counted:
        answers(model, batch, end_ids=[], max_new_tokens=tokens)
    return counted.calls


def test_a_decoding_step_takes_few_python_calls_and_none_of_the_emulation(
    single_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, image_tokens = build("clip")
    calls: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    found = []
    for tokens in (2, 12):
        calls.clear()
        sys.setprofile(count)
        try:
            answers(model, prompts(image_tokens), end_ids=[], max_new_tokens=tokens)
        finally:
            sys.setprofile(None)
        found.append(calls.copy())
    of_a_step = found[1] - found[0]
    assert of_a_step.total() / 10 <= PYTHON_CALLS_OF_A_STEP
    assert of_a_step[f"{CudaOnCpu.__name__}.__torch_function__"] == 0


def test_logits_are_computed_for_the_last_position_alone(
    single_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, image_tokens = build("clip")
    batch, shapes = prompts(image_tokens), []
    head = VocabularyHead.__call__
    monkeypatch.setattr(
        VocabularyHead, "__call__", lambda self, hidden: (shapes.append(len(hidden)), head(self, hidden))[1]
    )
    answers(model, batch, max_new_tokens=3, end_ids=[])
    assert shapes == [len(batch)] * 3
    assert Decoder(model).cache(2).capacity == 0
