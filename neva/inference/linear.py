"""Products of a few rows with large matrices, in the order in which the processor's library is quick.

MKL takes up to twice as long for a few rows times a large matrix as for the matrix times the rows, and for one row
twice as long where the matrix lies by rows as where it lies by columns (measured on an AMD EPYC, AVX2, torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor

from neva.model.adapted import AdaptedColumnLinear, AdaptedRowLinear

Product: TypeAlias = Callable[[Tensor], Tensor]
"""Of hidden states [T, in] with a matrix: [T, out]."""

_FEW_ROWS, _LARGE = 16, 2**20
"""Rows, and elements of a matrix, from which on the order matters."""


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns `F.linear` of hidden states [T, in] and a weight [out, in]: [T, out]."""
    is_narrow = 1 < len(hidden) <= _FEW_ROWS and weight.numel() >= _LARGE
    if not (is_narrow and bias is None and _is_float_on_cpu(weight)):
        return F.linear(hidden, weight, bias)
    return (weight @ hidden.t()).t().contiguous()


def product_of(module: Any, kind: type) -> Product:
    """Returns the product of one of Megatron's linear layers, with its adapter's if it has one.

    That of a row-parallel layer is this rank's addend of it, without a bias. What is another layer still has arithmetic
    of its own, which must not be passed over.
    """
    weight, bias = module.weight, module.bias if kind is ColumnParallelLinear else None
    product: Product = partial(linear, weight=weight, bias=bias)
    if (packed := getattr(module, "packed", None)) is not None:
        product = partial(packed.product, weight=weight, scales=module.scales, bias=bias)
    if isinstance(module, AdaptedColumnLinear | AdaptedRowLinear) and isinstance(module, kind):
        return module.adapter.in_generation(product, module)
    found = type(module)
    assert found is kind, f"found {found.__name__}, expected {kind.__name__}"
    return product


class VocabularyHead:
    """The largest product of a step: hidden states [T, H] to logits [T, V].

    On a processor the weight [V, H] is kept by columns too, for steps of one row.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.detach()
        self._by_columns = self._weight.t().contiguous() if _is_float_on_cpu(weight) else None

    def __call__(self, hidden: Tensor) -> Tensor:
        if self._by_columns is not None and len(hidden) == 1:
            return hidden @ self._by_columns
        return linear(hidden, self._weight)


def _is_float_on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
