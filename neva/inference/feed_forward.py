"""What follows attention in a decoder layer while it generates: one feed-forward layer, or experts.

Each gives this tensor-parallel rank's part of the result; the sum over the ranks is the whole.

Dimensions: T tokens, H hidden, E experts, k experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP
from torch import Tensor

from neva.inference.linear import Product, product_of
from neva.model.experts import choose

Function: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DenseWeights:
    """A gated layer that every token passes."""

    gate_up: Product
    down: Product
    activation: Function

    def __call__(self, normed_TH: Tensor, weights_T1: Tensor | None = None) -> Tensor:
        """Returns [T, H], each token weighted if `weights_T1` are given."""
        gate, up = self.gate_up(normed_TH).chunk(2, -1)
        inner = self.activation(gate).mul_(up)
        if weights_T1 is not None:
            inner = (inner * weights_T1).to(normed_TH.dtype)
        return self.down(inner)


@dataclass(frozen=True)
class ExpertWeights:
    """Experts, of which the router chooses k for each token; perhaps one more that every token passes."""

    router: Tensor
    experts: Sequence[DenseWeights]
    per_token: int
    pre_softmax: bool
    shared: DenseWeights | None
    shared_gate: Tensor | None

    def __call__(self, normed_TH: Tensor) -> Tensor:
        """Returns [T, H]."""
        logits_TE = F.linear(normed_TH, self.router)
        logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
        weights_Tk, numbers_Tk = choose(logits_TE, self.per_token, self.pre_softmax)
        result_TH = torch.zeros_like(normed_TH)
        for number in numbers_Tk.unique().tolist():
            tokens, places = (numbers_Tk == number).nonzero(as_tuple=True)
            served = self.experts[number](normed_TH[tokens], weights_Tk[tokens, places, None])
            result_TH.index_add_(0, tokens, served)
        if self.shared is not None and self.shared_gate is not None:
            result_TH += self.shared(normed_TH) * F.linear(normed_TH, self.shared_gate).sigmoid()
        return result_TH


FeedForward: TypeAlias = DenseWeights | ExpertWeights


def feed_forward_of(mlp: Any) -> FeedForward:
    """Returns the weights of what stands in Megatron's slot `mlp`, all of its experts on this rank."""
    if type(mlp) is MLP:
        return _dense(mlp)
    assert mlp.ep_group.size() == 1
    shared = mlp.shared_experts
    return ExpertWeights(
        router=mlp.router.weight,
        experts=[_dense(expert) for expert in mlp.experts.local_experts],
        per_token=mlp.router.topk,
        pre_softmax=mlp.config.moe_router_pre_softmax,
        shared=None if shared is None else _dense(shared),
        shared_gate=None if shared is None else shared.gate_weight,
    )


def _dense(mlp: Any) -> DenseWeights:
    return DenseWeights(
        product_of(mlp.linear_fc1, ColumnParallelLinear),
        product_of(mlp.linear_fc2, RowParallelLinear),
        mlp.config.activation_func,
    )
