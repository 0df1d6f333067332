"""Families that are not LLaMA's make, and all kinds of RoPE, against transformers: logits, gradients, generation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neva.families.language import language_table
from neva.inference.continuation import Continuation, Limits
from neva.inference.decoder import Decoder
from neva.inference.generate import ContinuousBatch
from neva.inference.sampling import Sampling
from neva.model import capped
from neva.model.decoder_spec import transformer_config
from neva.model.language import LanguageModel
from tests.model.relatives import RELATIVES, ids, in_float64, ours, theirs

# Two implementations of the same float32 arithmetic differ by the order of their sums.
TOLERANCE = 1e-5
GREEDY = Sampling(greedy=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.6)
LENGTH = 23
"""Longer than windows and than the length that scaled RoPE began with."""


def logits(model: LanguageModel, ids_BS: Tensor) -> Tensor:
    return model(model.embed(ids_BS).transpose(0, 1))


@pytest.mark.parametrize("name", RELATIVES)
def test_logits_are_those_of_transformers(single_process: None, name: str) -> None:
    reference = theirs(name)
    model, _ = ours(reference)
    for length in (LENGTH, 11):  # and shorter again: angles by length must follow
        with torch.no_grad():
            found, expected = logits(model, ids(length)), reference(ids(length)).logits
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
        shares = found.double().log_softmax(-1), expected.double().log_softmax(-1)
        assert F.kl_div(*shares, log_target=True, reduction="none").sum(-1).max() < 1e-8
        assert expected.std() > 0.1  # they say something


@pytest.mark.parametrize("name", RELATIVES)
def test_gradients_are_those_of_transformers_in_float64(single_process: None, name: str) -> None:
    with in_float64():
        reference = theirs(name).double()
        model, language = ours(reference, torch.float64)
        targets = ids(LENGTH).roll(-1, 1)
        loss = model(model.embed(ids(LENGTH)).transpose(0, 1), targets).mean()
        expected = F.cross_entropy(reference(ids(LENGTH)).logits.flatten(0, 1), targets.flatten())
        assert abs(loss - expected) < 1e-11
        loss.backward()
        expected.backward()
    gradients = {key: parameter.grad for key, parameter in reference.named_parameters()}
    native = dict(language_table(language).to_native(gradients))
    found = {f"language_model.{key}": parameter.grad for key, parameter in model.named_parameters()}
    assert native.keys() == found.keys()
    for key, gradient in native.items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(found[key], gradient, atol=1e-9, rtol=1e-9, msg=key)


@pytest.mark.parametrize("window", [None, 6])
def test_capped_attention_by_chunks_is_that_of_a_slow_loop(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Three chunks of seven queries, which stand at the last of nine keys more, with gradients."""
    draw = torch.Generator().manual_seed(0)
    sizes = [(17, 2, 4, 3), (26, 2, 2, 3), (26, 2, 2, 3)]
    query, key, value = (
        torch.randn(size, generator=draw, dtype=torch.float64, requires_grad=True) for size in sizes
    )
    monkeypatch.setattr(capped, "CAPPED_CHUNK", 7)
    found = capped.capped_attention(query, key, value, window, 0.7, 1.5)
    rows = []
    for at, row, head in itertools.product(range(17), range(2), range(4)):
        first = 0 if window is None else max(0, at + 10 - window)
        keys, values = (part[first : at + 10, row, head // 2] for part in (key, value))
        scores = 1.5 * torch.tanh(keys @ query[at, row, head] * 0.7 / 1.5)
        rows.append(scores.softmax(0) @ values)
    expected = torch.stack(rows).view(17, 2, 12)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weight = torch.randn(17, 2, 12, generator=draw, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


MUTATIONS = {
    "cap of scores forgotten": ("gemma2", {"score_cap": None}),
    "cap of logits forgotten": ("gemma2", {"logit_cap": None}),
    "window in all layers": ("gemma2", {"global_interval": None}),
    "windows in other layers": ("gemma2", {"global_interval": 3}),
    "scale of the head": ("gemma2", {"query_scalar": None}),
    "one base of RoPE": ("gemma3", {"local_rope_theta": None}),
    "one added to no norm": ("gemma3", {"norm": "rmsnorm"}),
    "embeddings as they are": ("gemma3", {"scales_embeddings": False}),
    "SiLU": ("gemma3", {"activation": "swiglu"}),
    "all of each head turned": ("stablelm", {"rotary_share": 1.0}),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_form_that_forgets_something_has_other_logits(single_process: None, mutation: str) -> None:
    name, changes = MUTATIONS[mutation]
    reference = theirs(name)
    model, language = ours(reference)
    wrong = replace(language, form=replace(language.form, **changes))
    other = LanguageModel(transformer_config(wrong), wrong, True, True).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        found, expected = logits(other, ids(LENGTH)), reference(ids(LENGTH)).logits
    assert (found - expected).abs().max() > 1e-3


def wrapped(model: LanguageModel) -> Any:
    """The decoder of inference asks a `NevaModel` for its language model alone, where there are no images."""
    return SimpleNamespace(language_model=model)


NEW = 24


@pytest.mark.parametrize("name", RELATIVES)
def test_generation_is_that_of_transformers(single_process: None, name: str) -> None:
    """Two prompts at a time: one outgrows window and original length at once, the other while it is answered."""
    reference = theirs(name)
    model, _ = ours(reference)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    prompts = [ids(21)[0], ids(9)[1]]
    limits = Limits(GREEDY, NEW, 0, ())
    asked = (
        Continuation(number, prompt, torch.empty(0), limits, 0, lambda _: False)
        for number, prompt in enumerate(prompts)
    )
    found = {each.number: each.answer for each in ContinuousBatch(Decoder(wrapped(model)), 2).answers(asked)}
    for number, prompt in enumerate(prompts):
        expected = reference.generate(
            prompt[None],
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            repetition_penalty=1.6,
        )
        assert found[number] == expected[0, len(prompt) :].tolist()
    assert len(set(found[0])) > 4
