"""Images or prompts whose positions see each other: masks as written out and as transformers takes them, packing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neva.config.load import load
from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.errors import ConfigError
from neva.model.build import build_model
from neva.model.llava import NevaModel
from neva.model.seen_together import whole_images, whole_prompts
from tests.inference.test_generate import GREEDY, answers, prompts
from tests.megatron import unnamed_batch
from tests.model.test_against_transformers import (
    TOLERANCE,
    VOCAB,
    batch,
    copy_weights,
    reference,
    reference_inputs,
    shapes,
)
from tests.model.test_packed import Group

IMAGES = [[7, -1, -1, 8, -1, -1, -1, 9], [-1, -1, -1, -1, 5, 6, -1, 4]]
"""-1: an image position; the first four of the second row are two images, of two samples."""
LENGTHS = [[8], [2, 5]]


KINDS = ["sees_whole_images", "sees_whole_prompts"]


def slow_prefix_mask(
    length: int, lengths: list[int], prefixes: list[int], window: int | None
) -> list[list[bool]]:
    samples = [number for number, length in enumerate(lengths) for _ in range(length)]
    samples += [len(lengths)] * (length - len(samples))
    firsts = [sum(lengths[:number]) for number in range(len(lengths))]

    def is_prefix(at: int) -> bool:
        number = samples[at]
        return number < len(lengths) and at - firsts[number] < prefixes[number]

    def sees(query: int, key: int) -> bool:
        is_near = window is None or query - key < window
        ahead = is_prefix(query) and is_prefix(key)
        return samples[query] == samples[key] and ((key <= query and is_near) or ahead)

    return [[sees(query, key) for key in range(length)] for query in range(length)]


def slow_mask(row: list[int], lengths: list[int], window: int | None) -> list[list[bool]]:
    samples = [number for number, length in enumerate(lengths) for _ in range(length)]
    samples += [len(lengths)] * (len(row) - len(samples))

    def one_image(query: int, key: int) -> bool:
        between = range(min(query, key), max(query, key) + 1)
        return all(row[at] == -1 and samples[at] == samples[query] for at in between)

    def sees(query: int, key: int) -> bool:
        is_near = window is None or query - key < window
        return samples[query] == samples[key] and ((key <= query and is_near) or one_image(query, key))

    return [[sees(query, key) for key in range(len(row))] for query in range(len(row))]


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_every_rank_has_its_rows_of_the_mask_as_written_out(size: int, window: int | None) -> None:
    ids = torch.tensor([[IMAGE_TOKEN_ID if token < 0 else token for token in row] for row in IMAGES])
    expected = torch.tensor(
        [slow_mask(row, lengths, window) for row, lengths in zip(IMAGES, LENGTHS, strict=True)]
    )
    found = torch.zeros_like(expected)
    for rank in range(size):
        group: Any = Group(rank, size)
        images = whole_images(ids, LENGTHS, group)
        assert images is not None
        found[:, images.queries_S] = images.mask(window)[:, 0]
        assert images.mask(window) is images.mask(window)
    assert torch.equal(found, expected)
    alone: Any = Group(0, 1)
    assert whole_images(torch.zeros(1, 4, dtype=torch.int64), None, alone) is None


PREFIXES = [[5], [1, 4]]


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_every_rank_has_its_rows_of_the_mask_of_prompts(size: int, window: int | None) -> None:
    expected = torch.tensor(
        [
            slow_prefix_mask(8, lengths, prefixes, window)
            for lengths, prefixes in zip(LENGTHS, PREFIXES, strict=True)
        ]
    )
    found = torch.zeros_like(expected)
    for rank in range(size):
        group: Any = Group(rank, size)
        together = whole_prompts(torch.zeros(2, 8, dtype=torch.int64), LENGTHS, PREFIXES, group)
        found[:, together.queries_S] = together.mask(window)[:, 0]
    assert torch.equal(found, expected)


def models(kind: str = "sees_whole_images") -> tuple[NevaModel, Any, int]:
    vision, language = shapes("clip", groups=2, tied=False)
    theirs = reference(vision, language)
    ours = build_model(vision, replace(language, **{kind: True}), "mlp2x_gelu").eval()
    copy_weights(ours, theirs)
    return ours, theirs, vision.num_tokens


def prefixes(data: dict[str, Tensor]) -> list[list[int]]:
    """Positions before the first that is learnt: labels are shifted."""
    is_label = (data["labels"] != IGNORE_INDEX).tolist()
    return [[row.index(True) + 1] for row in is_label]


def expected_logits(theirs: Any, data: dict[str, Tensor], kind: str) -> Tensor:
    """transformers' language model with a mask of four dimensions."""
    inputs = reference_inputs(data)
    embeddings = theirs.get_input_embeddings()(inputs["input_ids"])
    features = torch.cat(list(theirs.model.get_image_features(inputs["pixel_values"]).pooler_output))
    is_image = data["input_ids"] == IMAGE_TOKEN_ID
    embeddings = embeddings.masked_scatter(is_image[..., None], features)
    rows = data["input_ids"].masked_fill(is_image, -1).tolist()
    masks = [slow_mask(row, [len(row)], None) for row in rows]
    if kind == "sees_whole_prompts":
        ends = prefixes(data)
        masks = [
            slow_prefix_mask(len(row), [len(row)], end, None) for row, end in zip(rows, ends, strict=True)
        ]
    mask = torch.tensor(masks)[:, None]
    hidden = theirs.model.language_model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    return theirs.lm_head(hidden)[..., :VOCAB]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_transformers_with_such_a_mask(single_process: None, kind: str) -> None:
    ours, theirs, tokens = models(kind)
    data = batch(tokens)
    ends = prefixes(data)
    expected = expected_logits(theirs, data, kind)
    logits = ours(data["input_ids"], data["pixel_values"], prefix_lengths=ends)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    causal = theirs(**reference_inputs(data)).logits[..., :VOCAB]
    assert (expected - causal).abs().max() > 100 * TOLERANCE
    ours(data["input_ids"], data["pixel_values"], data["labels"], prefix_lengths=ends).mean().backward()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), data["labels"].flatten()).backward()
    found = ours.projector[0].weight.grad
    wanted = theirs.model.multi_modal_projector.linear_1.weight.grad
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_each_sample_what_it_gives_alone(single_process: None, kind: str) -> None:
    ours, _, tokens = models(kind)
    data = batch(tokens)
    ends = prefixes(data)
    length = data["input_ids"].size(1)
    row = {name: data[name].flatten()[None] for name in ("input_ids", "labels")}
    packed = ours(
        row["input_ids"],
        data["pixel_values"],
        row["labels"],
        sample_lengths=[[length, length]],
        prefix_lengths=[[end for (end,) in ends]],
    )
    each = [
        ours(
            data["input_ids"][n : n + 1],
            data["pixel_values"][n : n + 1],
            data["labels"][n : n + 1],
            prefix_lengths=ends[n : n + 1],
        )
        for n in range(2)
    ]
    assert (data["labels"] != IGNORE_INDEX).sum() == len(packed)
    torch.testing.assert_close(packed, torch.cat(each), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_grow_from_prompts_that_are_read_so(single_process: None, kind: str) -> None:
    ours, _, tokens = models(kind)
    asked = prompts(tokens)
    found = answers(ours, asked, GREEDY, end_ids=[], max_new_tokens=5)
    for prompt, answer in zip(asked, found, strict=True):
        ids, pixels = prompt.input_ids, prompt.pixel_values
        for token in answer:
            prefix = [[len(prompt.input_ids)]]
            logits = ours(ids[None], pixels if len(pixels) else None, prefix_lengths=prefix)[0, -1]
            assert token == int(logits.argmax())
            ids = torch.cat([ids, torch.tensor([token])])


def test_no_position_sees_what_it_learns(single_process: None) -> None:
    """A token that is learnt changes no logit in front of it, nor does what follows; the prefix does."""
    ours, _, tokens = models("sees_whole_prompts")
    data = batch(tokens)
    ids, labels = data["input_ids"][:1], data["labels"][:1]
    first = prefixes(data)[0][0]
    found = [ours(ids, data["pixel_values"][:1], prefix_lengths=[[first]])]
    ids = ids.clone()
    ids[0, first] = (ids[0, first] + 1) % VOCAB
    found.append(ours(ids, data["pixel_values"][:1], prefix_lengths=[[first]]))
    assert torch.equal(found[0][:, :first], found[1][:, :first])
    assert not torch.equal(found[0][:, first:], found[1][:, first:])
    with pytest.raises(ValueError, match="labels without prefix_lengths"):
        ours(ids, data["pixel_values"][:1], labels)


def test_a_batch_knows_the_prefix_of_each_sample() -> None:
    labels = torch.full((2, 8), IGNORE_INDEX)
    labels[0, 4:6], labels[1, 0], labels[1, 4] = 7, 7, 7
    made = replace(unnamed_batch(labels, labels, torch.empty(0)), sample_lengths=[[7], [2, 4]])
    assert made.prefix_lengths == [[5], [1, 3]]
    assert replace(made, sample_lengths=[[3], [2, 2]]).prefix_lengths == [[3], [1, 2]]
    assert replace(made, sample_lengths=[]).prefix_lengths == [[5], [1]]


def test_what_has_no_such_attention_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="only Megatron's layers without soft caps have it"):
        load(
            "quickstart_finetune", ["model.image_attention=bidirectional", "model.attn_logit_softcapping=50"]
        )
    for kind in ("bidirectional", "prefix"):
        assert load("quickstart_finetune", [f"model.image_attention={kind}"]).model.image_attention == kind
