"""Operations from sizes alone, against those that torch counts while real modules run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neva.constants import ADAPTERS, LANGUAGE_MODEL, PARTS, PROJECTOR
from neva.distributed.megatron_ddp import data_parallel
from neva.families.configs import LoraConfig
from neva.families.connector import connector_named
from neva.families.vision import vision_family
from neva.planner import flops
from neva.planner.flops import StepWork, causal_pairs, step_flops, total, tower_flops
from neva.planner.tensors import ModelSpec
from neva.training.step import run_global_batch
from tests.model.test_against_transformers import shapes
from tests.planner.test_plan_memory import built, micro_batch

ROWS, LENGTH, LABELS = 3, 40, 7
KINDS = {
    "linear": 36,
    "mlp3x_gelu": 36,
    "mlp2x_gelu_h20_nobias": 36,
    "mlp2x_gelu_newline": 36,
    "mlp_downsample": 36,
    "mlp2x_gelu_downsample": 5 * 36,
    "pixel_shuffle2_ln_mlp2x_gelu": 36,
    "concat4_linear": 36,
    "bilinear3x2_mlp2x_gelu": 36,
    "perceiver_n5_d2_h4x6_g2_m20": 36,
    "perceiver_n3_d1_h4x8_separate": 36,
    "qformer_n5_d3_h2x7_m20": 36,
    "cabstractor_n9_d2_w20": 36,
    "cabstractor_n16_d1_w24": 36,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_connector(kind: str) -> None:
    connector, features = connector_named(kind), torch.randn(1, KINDS[kind], 24)
    module = connector.build(24, 32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        module(features)
    assert sum(connector.flops(24, 32, KINDS[kind])) == counted.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_of_a_connector(kind: str) -> None:
    """What reads the features has no gradient for them, as long as the tower is frozen."""
    if kind == "mlp2x_gelu_downsample":
        pytest.skip("half of its features are read by a sum that trains nothing")
    connector, features = connector_named(kind), torch.randn(1, KINDS[kind], 24)
    module = connector.build(24, 32)
    with sdpa_kernel(SDPBackend.MATH):
        output = module(features)
    with FlopCounterMode(display=False) as counted:
        output.sum().backward()
    reads, others = connector.flops(24, 32, KINDS[kind])
    assert counted.get_total_flops() - too_many(module) == reads + 2 * others


def too_many(module: Any) -> int:
    """What torch counts beyond: in a backward pass, every channel of a depthwise convolution by every other one."""
    return sum(
        2 * (36 if name.startswith("before") else module.side**2) * part.weight.numel() * (part.groups - 1)
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d) and part.groups > 1
    )


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_tower(name: str) -> None:
    vision, _ = shapes(name, 2, False)
    tower = vision_family(vision.model_type).build(vision)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        vision_family(vision.model_type).hidden_states(
            tower, torch.randn(2, 3, vision.side, vision.side), vision
        )
    patches = (vision.side // vision.patch_size) ** 2
    assert 2 * tower_flops(vision, patches) == counted.get_total_flops()


TRAINED = [
    frozenset(PARTS),
    frozenset({PROJECTOR, LANGUAGE_MODEL}),
    frozenset({PROJECTOR}),
    frozenset({LANGUAGE_MODEL}),
]


@pytest.mark.parametrize("trained", TRAINED, ids=lambda trained: "+".join(sorted(trained)))
@pytest.mark.parametrize("recompute", [None, "full"])
def test_a_step(
    monkeypatch: pytest.MonkeyPatch, single_process: None, trained: frozenset[str], recompute: str | None
) -> None:
    # written out, attention computes the whole square
    monkeypatch.setattr(flops, "causal_pairs", lambda queries, window: queries * LENGTH)
    vision, language = shapes("clip", 2, False)
    model = ModelSpec(vision, language, "mlp2x_gelu", 128, trained)
    switches = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    real = built(model, "32", **(switches if recompute else {}))
    chunks = data_parallel([real])
    batch = micro_batch(vision, ROWS, LENGTH, LABELS, model.language.vocab_size)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        run_global_batch(chunks, [batch], torch.device("cpu"))
    patches = (vision.side // vision.patch_size) ** 2
    work = StepWork({LENGTH: ROWS}, ROWS * LABELS, {patches: ROWS}, {LENGTH - LABELS: ROWS})
    expected = total(step_flops(model, work, recompute).values())
    assert counted.get_total_flops() == pytest.approx(expected.run, rel=0.01)


def test_a_step_with_adapters_beside_both_models(
    monkeypatch: pytest.MonkeyPatch, single_process: None
) -> None:
    """Gradients that the first layer of the tower needs none of are counted, too: 2 % of this one."""
    monkeypatch.setattr(flops, "causal_pairs", lambda queries, window: queries * LENGTH)
    vision, language = shapes("clip", 2, False)
    lora = LoraConfig(8, 8.0, 0.0, True, (("mlp.linear_fc2", ("whole",)),), None, "kaiming", "normal")
    vision = replace(vision, lora=replace(lora, sites=(("all", ("whole",)),)))
    model = ModelSpec(
        vision, replace(language, lora=lora), "mlp2x_gelu", 128, frozenset({ADAPTERS, PROJECTOR})
    )
    chunks = data_parallel([built(model, "32")])
    batch = micro_batch(vision, ROWS, LENGTH, LABELS, language.vocab_size)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        run_global_batch(chunks, [batch], torch.device("cpu"))
    patches = (vision.side // vision.patch_size) ** 2
    work = StepWork({LENGTH: ROWS}, ROWS * LABELS, {patches: ROWS}, {LENGTH - LABELS: ROWS})
    assert total(step_flops(model, work, None).values()).run == pytest.approx(
        counted.get_total_flops(), rel=0.03
    )


def test_pairs_are_counted_as_a_loop_does() -> None:
    for length, window in ((7, None), (7, 3), (3, 7), (5, 5)):
        seen = [min(position + 1, window or length) for position in range(length)]
        assert causal_pairs(length, window) == sum(seen)
