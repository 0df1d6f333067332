"""Models with experts answer as those of transformers do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neva.inference.generate import Prompt
from tests.experts import FAMILIES, native, reference
from tests.inference.test_generate import NEW_TOKENS, answers


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_transformers_together_and_alone(
    single_process: None, tmp_path: Path, family: str
) -> None:
    theirs, ours = reference(family, tmp_path), native(tmp_path).requires_grad_(False)
    draw = torch.Generator().manual_seed(6)
    prompts = [
        Prompt(torch.randint(3, 133, (length,), generator=draw), torch.zeros(0, 3, 28, 28))
        for length in (9, 4, 17)
    ]
    together = answers(ours, prompts, end_ids=[])
    assert together == [answers(ours, [prompt], end_ids=[])[0] for prompt in prompts]
    for prompt, answer in zip(prompts, together, strict=True):
        ids = prompt.input_ids[None]
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert answer == expected[0, len(prompt.input_ids) :].tolist()
