"""Experts: logits of transformers, gradients of a slow loop, and a loss that balances each sample by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import MoEAuxLossAutoScaler
from torch import Tensor

from neva.constants import IGNORE_INDEX
from neva.data.batch import Batch
from neva.distributed.megatron_ddp import data_parallel
from neva.families.configs import ExpertsConfig, LanguageConfig
from neva.model.build import build_language_model
from neva.model.decoder_spec import transformer_config
from neva.model.experts import taken_losses
from neva.model.llava import NevaModel
from neva.training.step import run_global_batch
from tests.experts import FAMILIES, native, reference

# Two implementations of the same float32 arithmetic differ by the order of their sums.
TOLERANCE = 1e-5
SHARED = ExpertsConfig(number=5, per_token=3, ffn_hidden_size=8, pre_softmax=True, shared_ffn_hidden_size=12)
PLAIN = ExpertsConfig(number=4, per_token=2, ffn_hidden_size=8, pre_softmax=False)
AUX, Z = 0.3, 0.05


def build(experts: ExpertsConfig, **switches: object) -> NevaModel:
    language = LanguageConfig(
        num_layers=2, hidden_size=16, ffn_hidden_size=24, num_heads=2, num_query_groups=1, head_dim=8,
        vocab_size=31, padded_vocab_size=31, max_positions=64, rope_theta=1e4, rope_scaling=None,
        rms_norm_eps=1e-5, tied=False, qkv_bias=False, qk_norm=False, sliding_window=None, experts=experts,
    )  # fmt: skip
    config = transformer_config(language, params_dtype=torch.float64, init_method_std=0.3, **switches)
    torch.manual_seed(5)
    return NevaModel(build_language_model(language, config), None, None).train()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_transformers(single_process: None, tmp_path: Path, family: str) -> None:
    theirs, ours = reference(family, tmp_path), native(tmp_path)
    ids = torch.randint(0, 133, (2, 19), generator=torch.Generator().manual_seed(3))
    found, expected = ours(ids, None), theirs(ids).logits
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    found.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    layer = ours.language_model.decoder.layers[0].mlp
    theirs_layer = theirs.model.layers[0].mlp
    for number, expert in enumerate(layer.experts.local_experts):
        pairs = (
            (expert.linear_fc1, theirs_layer.experts.gate_up_proj),
            (expert.linear_fc2, theirs_layer.experts.down_proj),
        )
        for linear, joined in pairs:
            torch.testing.assert_close(linear.weight.grad, joined.grad[number], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.router.weight.grad, theirs_layer.gate.weight.grad, atol=1e-4, rtol=1e-4)


def largest(scores: Tensor, count: int) -> list[int]:
    """Places of the largest, the largest first."""
    values = scores.detach().tolist()
    return sorted(range(len(values)), key=lambda place: -values[place])[:count]


def slow_layer(layer: MoELayer, hidden_SBD: Tensor, experts: ExpertsConfig) -> Tensor:
    """Token by token, expert by expert."""

    def gated(mlp: torch.nn.Module, token: Tensor) -> Tensor:
        gate, up = (mlp.linear_fc1.weight @ token).chunk(2)
        return mlp.linear_fc2.weight @ (gate / (1 + torch.exp(-gate)) * up)

    rows = []
    for token in hidden_SBD.flatten(0, 1):
        scores = torch.exp(layer.router.weight @ token)
        chosen = largest(scores, experts.per_token)
        total = scores.sum() if experts.pre_softmax else sum(scores[number] for number in chosen)
        row = sum(scores[n] / total * gated(layer.experts.local_experts[n], token) for n in chosen)
        if layer.shared_experts is not None:
            gate = 1 / (1 + torch.exp(-(layer.shared_experts.gate_weight @ token)))
            row = row + gate * gated(layer.shared_experts, token)
        rows.append(row)
    return torch.stack(rows).view_as(hidden_SBD)


@pytest.mark.parametrize("experts", [PLAIN, SHARED], ids=["among the chosen", "among all, shared"])
def test_every_gradient_of_a_layer_equals_a_slow_loop_in_float64(
    single_process: None, experts: ExpertsConfig
) -> None:
    layer = build(experts).language_model.decoder.layers[0].mlp
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(7, 2, 16, generator=draw, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, 2, 16, generator=draw, dtype=torch.float64)
    leaves = [hidden, *layer.parameters()]
    found, expected = layer(hidden)[0], slow_layer(layer, hidden, experts)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert float(other.abs().max()) > 0
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


def data(length: int = 14) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Three rows: one sample and padding, a full one, two samples; labels here and there."""
    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 31, (3, length), generator=draw)
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[0, 2:7], labels[1, 3:5], labels[2, 1:4], labels[2, 8:9] = 5, 6, 7, 8
    return ids, labels, [[9], [length], [5, 7]]


def samples(lengths: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
    """Row and position of each token of each sample."""
    found = []
    for row, of_row in enumerate(lengths):
        first = 0
        for length in of_row:
            found.append([(row, position) for position in range(first, first + length)])
            first += length
    return found


def router_logits(model: NevaModel, ids: Tensor, lengths: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each layer, [B, S, E]."""
    found: list[Tensor] = []
    layers = model.language_model.decoder.layers
    hooks = [
        layer.mlp.router.register_forward_pre_hook(
            lambda router, given: found.append(F.linear(given[0], router.weight).transpose(0, 1))
        )
        for layer in layers
    ]
    model(ids, None, sample_lengths=lengths)
    for hook in hooks:
        hook.remove()
    return found


def slow_balance(logits_BSE: Tensor, groups: Sequence[Sequence[tuple[int, int]]], labels: Tensor) -> Tensor:
    """Balance and z-loss of one layer: group by group, token by token; a group is a list of (row, position)."""
    total = torch.zeros(2, dtype=torch.float64)
    for group in groups:
        tokens, experts = len(group), logits_BSE.size(-1)
        chosen, probability = [0.0] * experts, [torch.zeros(())] * experts
        squares = torch.zeros(())
        for row, position in group:
            logits = logits_BSE[row, position]
            sums = torch.exp(logits).sum()
            for number in largest(logits, 2):
                chosen[number] += 1 / (2 * tokens)
            probability = [
                p + torch.exp(logit) / sums / tokens for p, logit in zip(probability, logits, strict=True)
            ]
            squares = squares + torch.log(sums) ** 2 / tokens
        balance = experts * sum(f * p for f, p in zip(chosen, probability, strict=True))
        weight = sum(int(labels[row, position] != IGNORE_INDEX) for row, position in group)
        total = total + weight * torch.stack([balance, squares])
    return total


def gradients(model: NevaModel, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


def run(
    model: NevaModel, ids: Tensor, labels: Tensor, lengths: list[list[int]], weight: float = 1.0
) -> Tensor:
    packed = lengths if any(len(row) > 1 for row in lengths) else None
    losses = model(
        ids, None, labels=labels, sample_lengths=packed, token_lengths=lengths, label_weight=weight
    )
    return losses.sum() * weight


@pytest.mark.parametrize("kind", ["seq_aux_loss", "aux_loss"])
def test_the_loss_of_the_router_equals_a_slow_one_without_padding(single_process: None, kind: str) -> None:
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    switches = {"moe_router_load_balancing_type": kind, "moe_aux_loss_coeff": AUX, "moe_z_loss_coeff": Z}
    model, plain = build(PLAIN, **switches), build(PLAIN)
    ids, labels, lengths = data()
    spans = samples(lengths)
    groups = spans if kind == "seq_aux_loss" else [[place for span in spans for place in span]]
    slow = sum(slow_balance(logits, groups, labels) for logits in router_logits(plain, ids, lengths))
    found = gradients(model, run(model, ids, labels, lengths))
    torch.testing.assert_close(torch.stack(taken_losses([model])), slow.detach(), atol=1e-12, rtol=1e-12)
    without = gradients(plain, run(plain, ids, labels, lengths))
    expected = gradients(plain, slow @ torch.tensor([AUX, Z], dtype=torch.float64))
    assert max(float(gradient.abs().max()) for gradient in expected) > 0.1
    for one, other, added in zip(found, without, expected, strict=True):
        torch.testing.assert_close(one - other, added, atol=1e-10, rtol=1e-9)


def test_micro_batches_and_padding_change_no_gradient(single_process: None) -> None:
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    model = build(PLAIN, moe_router_load_balancing_type="seq_aux_loss", moe_aux_loss_coeff=AUX)
    ids, labels, lengths = data()
    together = gradients(model, run(model, ids, labels, lengths))
    one_by_one = [
        gradients(model, run(model, ids[r : r + 1], labels[r : r + 1], [lengths[r]])) for r in range(3)
    ]
    padded = [F.pad(ids, (0, 6)), F.pad(labels, (0, 6), value=IGNORE_INDEX)]
    longer = gradients(model, run(model, *padded, lengths))
    for number, expected in enumerate(together):
        torch.testing.assert_close(sum(each[number] for each in one_by_one), expected, atol=1e-11, rtol=1e-9)
        torch.testing.assert_close(longer[number], expected, atol=1e-11, rtol=1e-9)


def test_a_mean_over_micro_batches_scales_the_loss_of_the_router_too(single_process: None) -> None:
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    model = build(PLAIN, moe_router_load_balancing_type="seq_aux_loss", moe_aux_loss_coeff=AUX)
    whole = gradients(model, run(model, *data()))
    for part, expected in zip(gradients(model, run(model, *data(), weight=0.125)), whole, strict=True):
        torch.testing.assert_close(8 * part, expected, atol=1e-11, rtol=1e-9)


def test_a_step_shows_the_losses_of_its_routers_as_means_over_labels_and_layers(
    single_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(PLAIN, moe_router_load_balancing_type="seq_aux_loss", moe_aux_loss_coeff=AUX)
    monkeypatch.setattr(
        model, "embed", lambda ids, pixels, *others: NevaModel.embed(model, ids, None, *others)
    )
    ids, labels, lengths = data()
    slow = [slow_balance(logits, samples(lengths), labels) for logits in router_logits(model, ids, lengths)]
    micro_batches = [
        Batch(ids[rows], labels[rows], torch.empty(0), [""], 0, sample_lengths=lengths[rows])
        for rows in (slice(0, 2), slice(2, 3))
    ]
    found = run_global_batch(data_parallel([model]), micro_batches, torch.device("cpu"))
    expected = sum(slow)[0].item() / int((labels != IGNORE_INDEX).sum()) / len(slow)
    assert found.load_balancing_loss == pytest.approx(expected, rel=1e-12)
    assert found.z_loss == 0  # which is not asked for
