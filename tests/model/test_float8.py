"""Products in 8-bit floats against numbers rounded by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neva.model.build import build_model, set_trainable
from neva.model.compiled import compile_layers
from neva.model.decoder_spec import transformer_config
from neva.model.float8 import by_kernel, multiplied, product, scaled, use_float8
from tests.model.test_against_transformers import shapes
from tests.model.test_unread import learnt
from tests.planner.test_plan_memory import micro_batch

TOKENS, INPUTS, OUTPUTS = (5, 3), 64, 48
"""15 tokens: the inner dimension of a weight's gradient, which kernels want in sixteens."""
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST, BITS, SMALLEST = {E4M3: 448.0, E5M2: 57344.0}, {E4M3: 3, E5M2: 2}, {E4M3: -6, E5M2: -14}
"""Of each kind: its largest number, the bits behind the point, and the exponent below which they become fewer."""


def rounded(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """A tensor whose numbers have few bits, behind the largest power of two that leaves all of them in range."""
    scale = 2.0 ** torch.floor(torch.log2(LARGEST[kind] / tensor.abs().max()))
    exponent = torch.floor(torch.log2((tensor * scale).abs())).clamp(min=SMALLEST[kind])
    step = 2.0 ** (exponent - BITS[kind])
    return torch.round(tensor * scale / step) * step / scale


@pytest.mark.parametrize("gradients", [E5M2, E4M3], ids=["e5m2", "e4m3"])
def test_a_product_and_its_gradients_are_those_of_rounded_numbers(gradients: torch.dtype) -> None:
    """1e-6 is the order of sums in float32; the last of the bits is 0.06."""
    torch.manual_seed(0)
    input = torch.randn(*TOKENS, INPUTS, requires_grad=True)
    weight = (torch.randn(OUTPUTS, INPUTS) / 8).requires_grad_()
    output = product(input, weight, of_gradients=gradients)
    along = torch.randn_like(output) * 1e-4  # as small as gradients are
    output.backward(along)
    input_TI, weight_OI = rounded(input.detach().flatten(0, 1), E4M3), rounded(weight.detach(), E4M3)
    along_TO = rounded(along.flatten(0, 1), gradients)
    pairs = {
        output.detach().flatten(0, 1): input_TI @ weight_OI.t(),
        input.grad.flatten(0, 1): along_TO @ weight_OI,  # type: ignore[union-attr]
        weight.grad: along_TO.t() @ input_TI,
    }
    for found, expected in pairs.items():
        assert (found - expected).norm() < 1e-6 * expected.norm()  # type: ignore[operator, union-attr]
    assert (output - input @ weight.t()).abs().max() > 1e-3, "8 bits round"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_once_more(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    input, weight = torch.randn(4, INPUTS, dtype=dtype), torch.randn(OUTPUTS, INPUTS, dtype=dtype)
    found = product(input, weight, of_gradients=E5M2)
    expected = product(input.float(), weight.float(), of_gradients=E5M2)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_of_a_gpu_is_called_as_its_arguments_are_meant(dtype: torch.dtype) -> None:
    """torch has it for a CPU too; 1e-5 is the order of sums in float32."""
    torch.manual_seed(0)
    left, right = scaled(torch.randn(5, INPUTS), E5M2), scaled(torch.randn(OUTPUTS, INPUTS), E4M3)
    found, expected = by_kernel(left, right, dtype, is_fast=True), multiplied(left, right, dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 1e-2)


def test_zeros_stay_zeros() -> None:
    """As the gradient of a step without labels."""
    output = product(torch.zeros(4, INPUTS), torch.zeros(OUTPUTS, INPUTS), of_gradients=E5M2)
    assert torch.equal(output, torch.zeros(4, OUTPUTS))


def test_a_frozen_weight_has_no_gradient_and_keeps_no_input() -> None:
    input, weight = torch.randn(*TOKENS, INPUTS, requires_grad=True), torch.randn(OUTPUTS, INPUTS)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = product(input, weight, of_gradients=E5M2)
    output.sum().backward()
    assert [tensor.shape for tensor in kept] == [weight.shape]
    assert input.grad is not None


@pytest.mark.parametrize("compiled", [False, True], ids=["as they are", "compiled"])
@pytest.mark.filterwarnings("ignore")  # torch does what it warns of while it compiles
def test_a_model_learns_nearly_the_same(single_process: None, compiled: bool) -> None:
    vision, language = shapes("clip", 2, False)
    model = build_model(vision, language, "mlp2x_gelu", transformer_config(language)).train()
    set_trainable(model, {"projector", "language_model"})
    batch = micro_batch(vision, 3, 40, 7, language.vocab_size)
    exact_L, exact = learnt(model, batch)
    use_float8(model, e4m3_gradients=False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if compiled:
        compile_layers(model)
    found_L, found = learnt(model, batch)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert found.keys() == exact.keys()
    assert 1e-5 < (found_L - exact_L).abs().max() < 0.05
    for name, gradient in exact.items():
        alike: Any = torch.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0)
        assert alike > 0.98, (name, alike)
