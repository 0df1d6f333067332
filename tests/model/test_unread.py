"""What nobody reads of the last layer is left out, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from neva.constants import IGNORE_INDEX
from neva.data.batch import Batch
from neva.families.configs import LanguageConfig
from neva.families.language import language_config_from_hf
from neva.model.build import build_model
from neva.model.decoder_spec import transformer_config
from neva.model.llava import NevaModel
from tests.model.relatives import theirs
from tests.model.test_against_transformers import shapes
from tests.planner.test_plan_memory import micro_batch

LENGTH, LABELS = 40, 7
FORMS = ["llama", "phi3", "gemma2", "gemma3", "olmo2"]
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def language_of(form: str) -> LanguageConfig:
    if form == "llama":
        return shapes("clip", 2, False)[1]
    return language_config_from_hf(theirs(form).config.to_dict())


def built(language: LanguageConfig, **switches: Any) -> tuple[NevaModel, Batch]:
    vision = shapes("clip", 2, False)[0]
    config = transformer_config(language, params_dtype=torch.float64, **switches)
    model = build_model(vision, language, "mlp2x_gelu", config).double().train()
    batch = micro_batch(vision, 3, LENGTH, LABELS, language.vocab_size)
    batch.labels[0, -12:] = 3  # the first label of one row is not that of the others
    return model, replace(batch, pixel_values=batch.pixel_values.double())


def learnt(model: NevaModel, batch: Batch, **rows: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and gradients of a step, where `rows` say more of them to the model."""
    model.zero_grad(set_to_none=True)
    losses_L = model(batch.input_ids, batch.pixel_values, batch.labels, **rows)
    losses_L.double().sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return losses_L.detach(), gradients


def assert_less_work_for_the_same(
    model: NevaModel, batch: Batch, rows: dict[str, Any], unread: dict[str, Any]
) -> None:
    """Where `unread` says what nobody reads, the step has fewer operations, and the same losses and gradients."""
    with FlopCounterMode(display=False) as all_counted:
        expected, whole = learnt(model, batch, **rows)
    with FlopCounterMode(display=False) as counted:
        found, gradients = learnt(model, batch, **rows, **unread)
    # Megatron's softmax is float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert gradients.keys() == whole.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():  # sums over other numbers of rows
        assert (gradients[name] - gradient).abs().max() <= 1e-12 * largest, name
    assert counted.get_total_flops() < 0.95 * all_counted.get_total_flops()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("switches", [{}, RECOMPUTE], ids=["kept", "recomputed"])
def test_losses_and_gradients_are_those_of_whole_layers(
    single_process: None, form: str, switches: dict[str, Any]
) -> None:
    model, batch = built(language_of(form), **switches)
    assert batch.first_label == LENGTH - 12
    assert_less_work_for_the_same(model, batch, {}, {"first_label": batch.first_label})


PACKED = [[LENGTH - 25, 25], [9, LENGTH - 11], [LENGTH]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("switches", [{}, RECOMPUTE], ids=["kept", "recomputed"])
def test_samples_in_packed_rows_end_early_each_for_itself(
    single_process: None, form: str, switches: dict[str, Any]
) -> None:
    """Losses stay in the order of the labels, column by column."""
    model, batch = built(language_of(form), **switches)
    batch = replace(batch, sample_lengths=PACKED)
    batch.labels[1, 4], batch.labels[1, -2:] = 5, IGNORE_INDEX  # of the first sample; none is in padding
    rows = {"sample_lengths": batch.packed_lengths}
    assert_less_work_for_the_same(model, batch, rows, {"prefix_lengths": batch.prefix_lengths})


def test_a_label_before_the_first_is_lost(single_process: None) -> None:
    """What a wrong number would do, and that the number says it."""
    model, batch = built(language_of("llama"))
    losses, _ = learnt(model, batch, first_label=batch.first_label + 1)
    assert len(losses) == batch.num_labels - 1


def test_without_labels_rows_stay_whole(single_process: None) -> None:
    model, batch = built(language_of("llama"))
    batch.labels.fill_(IGNORE_INDEX)
    assert batch.first_label == 0
    assert learnt(model, batch, first_label=batch.first_label)[0].numel() == 0
