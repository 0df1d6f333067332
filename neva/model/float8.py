"""Matrix products of the decoder's layers in 8-bit floats; weights, sums and all else stay as they are.

Source: https://arxiv.org/abs/2209.05433; torchao's tensorwise recipe computes the same, bit by bit. The products are
torch's own: torchao calls them too, and where it is installed transformers imports it, for three seconds of each start.
A tensor is scaled by a power of two that follows from its own largest number, each time: then a shard of a tensor is
rounded as the whole, and all layouts see the same numbers.

Dimensions: T tokens, O outputs, I inputs of a matrix (of this tensor-parallel rank).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import mappings
from torch import Tensor
from torch.distributed import ProcessGroup

from neva.errors import ConfigError
from neva.model.llava import NevaModel
from neva.model.matrices import decoder_matrices
from neva.precision import FLOAT8_MULTIPLE as MULTIPLE

OLDEST_GPU = (8, 9)
"""Compute capability from which on GPUs have such products: L4, L40, H100."""
FORWARD = torch.float8_e4m3fn


def use_float8(model: NevaModel, e4m3_gradients: bool) -> None:
    """Has the matrices of all decoder layers multiply in 8 bits; names of weights stay.

    Raises:
        ConfigError: this machine's GPU has no such products.
    """
    if (problem := float8_problem()) is not None:
        raise ConfigError(problem)
    of_gradients = FORWARD if e4m3_gradients else torch.float8_e5m2
    for layer in model.language_model.decoder.layers:
        for matrix in decoder_matrices(layer):
            matrix._forward_impl = partial(product, of_gradients=of_gradients)


def float8_problem() -> str | None:
    """Returns what `model.fp8=true` lacks on this machine; a CPU computes the same."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= OLDEST_GPU:
        return None
    found, needed = (".".join(map(str, pair)) for pair in (torch.cuda.get_device_capability(), OLDEST_GPU))
    return (
        f"model.fp8=true: found {torch.cuda.get_device_name()} of compute capability {found}, expected {needed} or "
        "later (L4, L40, H100), which multiplies in 8 bits; leave model.fp8 out"
    )


class Scaled(NamedTuple):
    """8-bit floats [R, C], and by what they are to be multiplied."""

    values: Tensor
    factor: Tensor

    @property
    def turned(self) -> Scaled:
        """The transposed matrix, its rows one after another in memory."""
        return Scaled(self.values.t().contiguous(), self.factor)


def scaled(tensor: Tensor, dtype: torch.dtype) -> Scaled:
    """Returns a tensor [R, C] in 8 bits: scaled until its largest number is half of their largest or more."""
    largest = torch.finfo(dtype).max
    highest = tensor.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny * largest)
    scale = torch.exp2(torch.floor(torch.log2(largest / highest)))
    return Scaled((tensor * scale).clamp(-largest, largest).to(dtype), scale.reciprocal())


def multiplied(left: Scaled, right: Scaled, dtype: torch.dtype, is_fast: bool = False) -> Tensor:
    """Returns `left @ right.t()` in `dtype`: [R, C] and [Q, C] to [R, Q].

    Args:
        left, right: rows one after another in memory, C a multiple of `MULTIPLE`.
        is_fast: sums of a GPU may have fewer bits than float32.
    """
    if left.values.is_cuda:
        return by_kernel(left, right, dtype, is_fast)
    # the same numbers: torch's kernel for a CPU multiplies one by one, hundreds of times as long
    product_RQ = left.values.float() @ right.values.float().t()
    return (product_RQ * (left.factor * right.factor)).to(dtype)


def by_kernel(left: Scaled, right: Scaled, dtype: torch.dtype, is_fast: bool) -> Tensor:
    """Returns the same by the kernel for 8 bits."""
    found: Tensor = torch._scaled_mm(
        left.values,
        right.values.t(),
        scale_a=left.factor,
        scale_b=right.factor,
        out_dtype=dtype,
        use_fast_accum=is_fast,
    )
    return found


def product(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    of_gradients: torch.dtype,
    allreduce_dgrad: bool = False,
    sequence_parallel: bool = False,
    tp_group: ProcessGroup | None = None,
    **_: Any,
) -> Tensor:
    """Returns `F.linear` in 8 bits, with the messages between tensor-parallel ranks of Megatron's own product."""
    found: Tensor = _RoundedProduct.apply(
        input, weight, of_gradients, allreduce_dgrad, sequence_parallel, tp_group
    )
    return found if bias is None else found + bias


class _RoundedProduct(torch.autograd.Function):
    """A product that keeps its factors as they were; a frozen weight has no gradient computed."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight_OI: Tensor,
        of_gradients: torch.dtype,
        sums_gradient: bool,
        is_scattered: bool,
        group: ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(input if weight_OI.requires_grad else None, weight_OI)
        ctx.of_gradients, ctx.sums_gradient = of_gradients, sums_gradient
        ctx.is_scattered, ctx.group = is_scattered, group
        whole = mappings._gather_along_first_dim(input, group) if is_scattered else input
        input_TI = scaled(whole.flatten(0, -2), FORWARD)
        output_TO = multiplied(input_TI, scaled(weight_OI, FORWARD), input.dtype, is_fast=True)
        return output_TO.view(*whole.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight_OI = ctx.saved_tensors
        gradient = gradients[0]
        gradient_TO = scaled(_filled(gradient), ctx.of_gradients)
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input_TI = multiplied(gradient_TO, scaled(weight_OI, FORWARD).turned, gradient.dtype)
            shape = gradient.shape[:-1]
            of_input = _between_ranks(ctx, of_input_TI[: shape.numel()].view(*shape, -1))
        if ctx.needs_input_grad[1]:
            whole = mappings._gather_along_first_dim(input, ctx.group) if ctx.is_scattered else input
            input_IT = scaled(_filled(whole), FORWARD).turned
            of_weight = multiplied(gradient_TO.turned, input_IT, weight_OI.dtype)
        return of_input, of_weight, None, None, None, None


def _filled(tensor: Tensor) -> Tensor:
    """Returns a tensor [..., C] as [T, C], T filled up with zeros to what products take as their inner dimension."""
    tensor_TC = tensor.flatten(0, -2)
    return F.pad(tensor_TC, (0, 0, 0, -len(tensor_TC) % MULTIPLE))


def _between_ranks(ctx: Any, of_input: Tensor) -> Tensor:
    """Returns the input's gradient, summed over tensor-parallel ranks as its matrix asks for it."""
    if ctx.is_scattered:
        return mappings._reduce_scatter_along_first_dim(of_input, ctx.group)
    return mappings._reduce(of_input, ctx.group) if ctx.sums_gradient else of_input
