"""Layers that torch compiles: what lies between two products becomes one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import RowParallelLinear

from neva.errors import ConfigError
from neva.model.llava import NevaModel

KINDS = 32
"""Most kinds of one layer: the last and the others, with a window and without, while training and not, …"""


def compile_layers(model: NevaModel) -> None:
    """Has torch compile the layers of decoder and towers when they first run; names of weights stay.

    Kernels take any length and any number of pictures: a run computes the same wherever it is resumed.

    Raises:
        ConfigError: this machine has no compiler.
    """
    if (problem := compiler_problem()) is not None:
        raise ConfigError(problem)
    torch._dynamo.config.recompile_limit = KINDS
    layers = [*model.language_model.decoder.layers]
    for layer in layers:
        _make_traceable(layer)
    for tower in (model.vision_tower, model.second_vision_tower):
        layers += [] if tower is None else tower.blocks
    for layer in layers:  # not the module: FSDP's hooks around it stay as they are
        layer.forward = torch.compile(layer.forward, dynamic=True)


def compiler_problem() -> str | None:
    """Returns what `model.torch_compile=true` lacks on this machine."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    remedy = "or leave model.torch_compile=true out"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return f"model.torch_compile=true: found no C++ compiler; install g++, or name one in CXX, {remedy}"
    if torch.cuda.is_available() and not has_triton():
        return (
            f"model.torch_compile=true: found a GPU, and no Triton to make its kernels; install it, {remedy}"
        )
    return None


def _make_traceable(layer: Any) -> None:
    """Takes out of a decoder layer what would end its graph, or ask for another one with every batch."""
    attention = layer.self_attention.core_attention
    attention.attend_rows = torch.compiler.disable(attention.attend_rows)  # told of another list each time
    for part in layer.modules():
        if isinstance(part, RowParallelLinear):
            part._forward_impl = _with_group(part, part._forward_impl)


def _with_group(linear: RowParallelLinear, product: Callable[..., Any]) -> Callable[..., Any]:
    """Names the group, for whose absence Megatron warns at each call."""

    def named(*arguments: Any, **keywords: Any) -> Any:
        return product(*arguments, **{**keywords, "tp_group": linear.tp_group})

    return named
