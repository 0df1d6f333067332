"""Queries and keys are turned as Megatron turns them, by cosines that are taken once a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from neva.families.configs import LanguageConfig
from neva.model.build import build_model
from neva.model.decoder_spec import transformer_config
from neva.model.rotary import Rotary, turned
from tests.model.test_against_transformers import shapes
from tests.model.test_unread import language_of
from tests.planner.test_plan_memory import micro_batch

LENGTH, ROWS, HEADS = 9, 2, 3


class Called(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def part_turned(share: float) -> LanguageConfig:
    language = shapes("clip", 2, False)[1]
    return replace(language, form=replace(language.form, rotary_share=share))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_heads_are_turned_bit_by_bit_as_megatron_turns_them(share: float, dtype: torch.dtype) -> None:
    language = part_turned(share)
    rotary = Rotary(language)
    leaf = torch.randn(LENGTH, ROWS, HEADS, language.head_dim).to(dtype).requires_grad_()
    angles = rotary.angles(LENGTH, leaf.device)[:, None, None]
    results: list[Tensor] = []
    for heads in (turned(leaf, rotary.waves(LENGTH, leaf)), _apply_rotary_pos_emb_bshd(leaf, angles)):
        (gradient,) = torch.autograd.grad(heads.square().sum(), leaf)
        results += [heads, gradient]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


@pytest.mark.parametrize(("form", "sets"), [("llama", 1), ("phi3", 1), ("gemma3", 2)])
def test_cosines_are_taken_once_however_many_layers_take_them(
    single_process: None, form: str, sets: int
) -> None:
    vision = shapes("clip", 2, False)[0]
    language = language_of(form)
    model = build_model(vision, language, "mlp2x_gelu", transformer_config(language)).train()
    batch = micro_batch(vision, 3, 40, 7, language.vocab_size)
    arguments = (batch.input_ids, batch.pixel_values, batch.labels)
    for expected in (sets, 0):  # rows of one length keep them
        with Called() as called:
            model(*arguments).sum().backward()
        assert called.counts["cos"] == called.counts["sin"] == expected
