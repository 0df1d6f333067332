"""Compiled layers against the same layers as they are, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from neva.families.configs import LoraConfig
from neva.model.compiled import compile_layers
from tests.model.test_unread import LENGTH, RECOMPUTE, built, language_of, learnt

pytestmark = pytest.mark.filterwarnings("ignore")  # torch does what it warns of while it compiles
SITES = (("mlp.linear_fc2", ("whole",)), ("self_attention.linear_qkv", ("q", "k", "v")))
LORA = LoraConfig(8, 8.0, 0.0, True, SITES, None, "kaiming", "normal")
PACKED = {"sample_lengths": [[LENGTH - 25, 25], [9, LENGTH - 11], [LENGTH]]}
EARLY = {**PACKED, "prefix_lengths": [[LENGTH - 25, 14], [9, 25], [LENGTH - 6]]}


@pytest.mark.parametrize("rows", [PACKED, EARLY, {}], ids=["packed", "packed, ends early", "alone"])
def test_losses_and_gradients_are_those_of_layers_as_they_are(
    single_process: None, rows: dict[str, Any]
) -> None:
    """Recomputed, with adapters, whose code is the same for both kinds of rows."""
    model, batch = built(replace(language_of("llama"), lora=LORA), **RECOMPUTE)
    losses_L, gradients = learnt(model, batch, **rows)
    compile_layers(model)
    found_L, found = learnt(model, batch, **rows)
    torch.testing.assert_close(found_L, losses_L, atol=1e-6, rtol=1e-6)  # Megatron's softmax is float32
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():  # sums in another order
        assert (found[name] - gradient).abs().max() <= 1e-13 * largest, name
