"""Generation: batches of different lengths give the answers of one-by-one, and those of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from neva.constants import IMAGE_TOKEN_ID
from neva.inference.generate import Prompt, generate
from neva.inference.sampling import Sampling, draw, next_tokens, penalize_repetition, restrict
from neva.model.build import build_model
from neva.model.llava import NevaModel
from tests.model.test_against_transformers import VOCAB, copy_weights, reference, reference_inputs, shapes

GREEDY = Sampling(greedy=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
NEW_TOKENS = 12
EOS = 2


def prompts(num_image_tokens: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(3)
    image = torch.full((num_image_tokens,), IMAGE_TOKEN_ID)
    made = []
    for before, after, images in ((3, 9, 1), (1, 4, 1), (7, 0, 0), (2, 15, 1)):
        text = torch.randint(3, VOCAB, (before + after,), generator=generator)
        ids = torch.cat([text[:before], *[image] * images, text[before:]])
        made.append(Prompt(ids, torch.randn(images, 3, 28, 28, generator=generator)))
    return made


def answers(
    model: NevaModel, batch: list[Prompt], sampling: Sampling = GREEDY, **changes: object
) -> list[list[int]]:
    arguments: dict[str, object] = {
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": 0,
        "end_ids": [EOS],
        "is_finished": lambda _: False,
        "seeds": list(range(len(batch))),
        "device": torch.device("cpu"),
    }
    return generate(model, batch, sampling, **{**arguments, **changes})  # type: ignore[arg-type]


def build(tower: str, sliding_window: int | None = None) -> tuple[NevaModel, object, int]:
    vision, language = shapes(tower, groups=2, tied=False)
    theirs = reference(vision, language)
    ours = build_model(vision, replace(language, sliding_window=sliding_window), "mlp2x_gelu").eval()
    copy_weights(ours, theirs)
    return ours, theirs, vision.num_tokens


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_greedy_answers_equal_transformers_one_by_one(single_process: None, tower: str) -> None:
    ours, theirs, image_tokens = build(tower)
    batch = prompts(image_tokens)
    for prompt, answer in zip(batch, answers(ours, batch), strict=True):
        inputs = reference_inputs({"input_ids": prompt.input_ids[None], "pixel_values": prompt.pixel_values})
        if len(prompt.pixel_values) == 0:
            del inputs["pixel_values"]
        generated = theirs.generate(  # type: ignore[attr-defined]
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=EOS, pad_token_id=0,
            suppress_tokens=list(range(VOCAB, 128)),
        )[0, len(prompt.input_ids) :].tolist()  # fmt: skip
        expected = generated[: generated.index(EOS)] if EOS in generated else generated
        assert answer == expected


@pytest.mark.parametrize("sliding_window", [None, 9])
def test_a_batch_answers_like_its_members_alone(single_process: None, sliding_window: int | None) -> None:
    model, _, image_tokens = build("clip", sliding_window)
    batch = prompts(image_tokens)
    sampled = replace(GREEDY, greedy=False, temperature=1.5, top_p=0.95, repetition_penalty=1.2)
    for sampling in (GREEDY, sampled):
        together = answers(model, batch, sampling)
        alone = [answers(model, [prompt], sampling, seeds=[row])[0] for row, prompt in enumerate(batch)]
        assert together == alone
        assert len({tuple(answer) for answer in together}) > 1


def test_an_answer_ends_at_its_end_and_not_before_its_minimum(single_process: None) -> None:
    model, _, image_tokens = build("clip")
    batch = prompts(image_tokens)[:2]
    free = answers(model, batch)
    short = answers(model, batch, is_finished=lambda ids: len(ids) == 3)
    assert short == [answer[:3] for answer in free]
    stopped = answers(model, batch, end_ids=[free[0][4]])[0]
    assert stopped == free[0][: free[0].index(free[0][4])]
    longer = answers(model, batch, end_ids=[free[0][4]], min_new_tokens=8)
    assert all(len(answer) >= 8 for answer in longer)


def test_each_of_several_end_tokens_ends_an_answer(single_process: None) -> None:
    model, _, image_tokens = build("clip")
    batch = prompts(image_tokens)[:1]
    (free,) = answers(model, batch)
    (stopped,) = answers(model, batch, end_ids=[EOS, free[4]])
    assert stopped == free[: free.index(free[4])]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "penalty"),
    [(0.2, 0, 0.9, 1.2), (1.0, 5, 1.0, 1.0), (1.5, 40, 0.5, 0.8), (0.7, 1, 0.99, 1.3), (1.0, 500, 0.01, 1.0)],
)
def test_probabilities_are_those_of_transformers_processors(
    temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 300, generator=generator) * 4
    ids = torch.randint(0, 300, (4, 12), generator=generator)
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    processors.append(TopPLogitsWarper(top_p))
    seen = torch.zeros(4, 300, dtype=torch.bool).scatter_(1, ids, True)
    found = restrict(penalize_repetition(logits, seen, penalty) / temperature, top_k, top_p).softmax(-1)
    assert torch.equal(found > 0, (expected := processors(ids, logits).softmax(-1)) > 0)
    assert torch.allclose(found, expected, atol=1e-6)


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    probabilities, count = torch.tensor([0.0, 0.5, 0.3, 0.15, 0.05, 0.0]), 4000
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    found = draw(probabilities.expand(count, -1), generators).bincount(minlength=6) / count
    # five standard deviations of a share
    assert ((found - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / count).sqrt()).all()


def test_a_nucleus_larger_than_usual_is_found_whole() -> None:
    logits = torch.stack([torch.zeros(1000), torch.linspace(0, 50, 1000)])
    kept = restrict(logits, 0, 0.9).isfinite().sum(-1)
    assert 899 <= int(kept[0]) <= 901  # 900 of 1000 equal ones; sums of float32
    alone = restrict(logits[1:], 0, 0.9)
    assert torch.equal(restrict(logits, 0, 0.9)[1:], alone)


def test_nucleus_and_top_k_keep_what_a_hand_computation_keeps() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    kept = lambda top_k, top_p: restrict(logits, top_k, top_p).isfinite()[0].tolist()  # noqa: E731
    assert kept(2, 1.0) == [True, True, False, False]
    assert kept(0, 0.5) == [True, False, False, False]
    assert kept(0, 0.7) == [True, True, False, False]
    assert kept(0, 0.95) == [True, True, True, True]
    assert kept(1, 0.95) == [True, False, False, False]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1e-30, 0, 1.0), (1e-40, 5, 0.9), (1e-320, 0, 0.5), (1.0, 0, 1e-50), (1.0, 10**9, 1e-320)],
)
def test_what_float32_does_not_hold_is_the_likeliest_token(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) * 4
    draws = [torch.Generator().manual_seed(seed) for seed in range(4)]
    found = next_tokens(logits, None, Sampling(False, temperature, top_k, top_p, 1.0), draws)
    assert torch.equal(found, logits.argmax(-1))


def test_repetition_penalty_moves_seen_tokens_down() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    seen = torch.tensor([[True, True, False]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 1.0]]
