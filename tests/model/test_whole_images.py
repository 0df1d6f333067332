"""Images whose positions see each other: masks written out, transformers with such a mask, packed rows, answers."""

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
from neva.model.whole_images import whole_images
from tests.inference.test_generate import GREEDY, answers, prompts
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


def models() -> tuple[NevaModel, Any, int]:
    vision, language = shapes("clip", groups=2, tied=False)
    theirs = reference(vision, language)
    ours = build_model(vision, replace(language, sees_whole_images=True), "mlp2x_gelu").eval()
    copy_weights(ours, theirs)
    return ours, theirs, vision.num_tokens


def expected_logits(theirs: Any, data: dict[str, Tensor]) -> Tensor:
    """transformers' language model with a mask of four dimensions."""
    inputs = reference_inputs(data)
    embeddings = theirs.get_input_embeddings()(inputs["input_ids"])
    features = torch.cat(list(theirs.model.get_image_features(inputs["pixel_values"]).pooler_output))
    is_image = data["input_ids"] == IMAGE_TOKEN_ID
    embeddings = embeddings.masked_scatter(is_image[..., None], features)
    rows = data["input_ids"].masked_fill(is_image, -1).tolist()
    mask = torch.tensor([slow_mask(row, [len(row)], None) for row in rows])[:, None]
    hidden = theirs.model.language_model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    return theirs.lm_head(hidden)[..., :VOCAB]


def test_logits_and_gradients_are_transformers_with_such_a_mask(single_process: None) -> None:
    ours, theirs, tokens = models()
    data = batch(tokens)
    expected = expected_logits(theirs, data)
    logits = ours(data["input_ids"], data["pixel_values"])
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    causal = theirs(**reference_inputs(data)).logits[..., :VOCAB]
    assert (expected - causal).abs().max() > 100 * TOLERANCE
    ours(data["input_ids"], data["pixel_values"], data["labels"]).mean().backward()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), data["labels"].flatten()).backward()
    found = ours.projector[0].weight.grad
    wanted = theirs.model.multi_modal_projector.linear_1.weight.grad
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=1e-4)


def test_packed_rows_give_each_sample_what_it_gives_alone(single_process: None) -> None:
    ours, _, tokens = models()
    data = batch(tokens)
    length = data["input_ids"].size(1)
    row = {name: data[name].flatten()[None] for name in ("input_ids", "labels")}
    packed = ours(row["input_ids"], data["pixel_values"], row["labels"], sample_lengths=[[length, length]])
    each = [
        ours(data["input_ids"][n : n + 1], data["pixel_values"][n : n + 1], data["labels"][n : n + 1])
        for n in range(2)
    ]
    assert (data["labels"] != IGNORE_INDEX).sum() == len(packed)
    torch.testing.assert_close(packed, torch.cat(each), atol=TOLERANCE, rtol=TOLERANCE)


def test_answers_grow_from_prompts_that_are_read_so(single_process: None) -> None:
    ours, _, tokens = models()
    asked = prompts(tokens)
    found = answers(ours, asked, GREEDY, end_ids=[], max_new_tokens=5)
    for prompt, answer in zip(asked, found, strict=True):
        ids, pixels = prompt.input_ids, prompt.pixel_values
        for token in answer:
            logits = ours(ids[None], pixels if len(pixels) else None)[0, -1]
            assert token == int(logits.argmax())
            ids = torch.cat([ids, torch.tensor([token])])


def test_what_has_no_such_attention_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="only Megatron's layers without soft caps have it"):
        load(
            "quickstart_finetune", ["model.image_attention=bidirectional", "model.attn_logit_softcapping=50"]
        )
    assert load("quickstart_finetune", ["model.image_attention=bidirectional"]).model.image_attention
