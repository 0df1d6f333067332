"""Products in 8 bits whose matrices two ranks share, against those of one process."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from neva.distributed import groups
from neva.model.float8 import product
from tests.megatron import meetings, ranks_tell

RANKS, TOKENS, HIDDEN, INNER = 2, 32, 64, 96


def numbers() -> list[Tensor]:
    """Input [S, 1, H], weights [I, H] and [H, I] and the gradient of the output [S, 1, H]."""
    draw = torch.Generator().manual_seed(0)
    shapes = (TOKENS, 1, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER), (TOKENS, 1, HIDDEN)
    return [torch.randn(shape, generator=draw) / shape[-1] ** 0.5 for shape in shapes]


def learnt(rank: int, size: int, sequence_parallel: bool) -> list[Tensor]:
    """Returns output, gradient of the input, and gradients of this rank's shards of both weights."""
    input, up, down, along = numbers()
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=RANKS,
        tensor_model_parallel_size=size,
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=True,
    )
    kind: dict[str, Any] = {"config": config, "init_method": torch.nn.init.zeros_, "bias": False}
    first = ColumnParallelLinear(HIDDEN, INNER, gather_output=False, **kind)
    second = RowParallelLinear(INNER, HIDDEN, input_is_parallel=True, skip_bias_add=False, **kind)
    for matrix, weight in ((first, up.chunk(size)[rank]), (second, down.chunk(size, dim=1)[rank])):
        matrix.weight.data.copy_(weight)
        matrix._forward_impl = partial(product, of_gradients=torch.float8_e5m2)
    if sequence_parallel:
        input, along = input.chunk(size)[rank], along.chunk(size)[rank]
    input = input.detach().requires_grad_()
    output = second(torch.relu(first(input)[0]))[0]
    output.backward(along)
    return [output.detach(), *(tensor.grad for tensor in (input, first.weight, second.weight))]  # type: ignore[list-item]


def _rank(rank: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    for is_scattered, _ in zip((False, True), meetings(rank, RANKS, port), strict=False):
        groups.init_model_parallel(groups.ParallelSizes(tensor=RANKS), seed=1)
        results.put((is_scattered, rank, [tensor.numpy() for tensor in learnt(rank, RANKS, is_scattered)]))


def test_two_ranks_learn_what_one_does(single_process: None, free_port: int) -> None:
    """Both matrices and their messages; 3e-7 is the order of sums in float32, far below the last of 8 bits (0.06)."""
    expected = learnt(0, 1, False)
    told = ranks_tell(_rank, RANKS, 2 * RANKS, free_port)
    shards = {(is_scattered, rank): list(map(torch.from_numpy, found)) for is_scattered, rank, found in told}
    for is_scattered in (False, True):
        pairs = zip(*(shards[is_scattered, rank] for rank in range(RANKS)), strict=True)
        for part, (axis, pair, whole) in enumerate(zip((0, 0, 0, 1), pairs, expected, strict=True)):
            is_whole = part < 2 and not is_scattered
            found = pair[0] if is_whole else torch.cat(pair, dim=axis)
            error = (found - whole).norm() / whole.norm()
            assert error < 3e-7, (is_scattered, part, float(error))
