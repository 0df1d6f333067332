"""Megatron-core on a machine without CUDA.

Megatron writes `device="cuda"`, `torch.cuda.current_device()` and `Tensor.cuda()` into its layers, schedules and
optimizers. `install()` gives those spellings a meaning on the CPU, once per process, and does nothing where CUDA is
present: every line above this module is the same on a laptop and on a cluster.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_active: CudaOnCpu | None = None


class CudaOnCpu(TorchFunctionMode):
    """Rewrites CUDA devices in torch calls to the CPU, as `torch.set_default_device` rewrites missing ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's optimizers compare with 'torch.cuda.FloatTensor'.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if func is torch.Tensor.to:
            args = tuple(_on_cpu(arg) for arg in args)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _on_cpu(kwargs["device"])}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)


def _on_cpu(value: Any) -> Any:
    """Returns the CPU device for anything that names a CUDA device, else the value itself."""
    is_cuda = (isinstance(value, str) and value.startswith("cuda")) or (
        isinstance(value, torch.device) and value.type == "cuda"
    )
    return _CPU if is_cuda else value


def install() -> torch.device:
    """Makes Megatron usable in this process and returns the device to train on.

    Returns:
        The current CUDA device, or the CPU with CUDA's names emulated. Calling it again changes nothing.
    """
    global _active
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if _active is None:
        _patch_cuda_functions()
        _active = CudaOnCpu()
        _active.__enter__()
    return _CPU


def suspended() -> AbstractContextManager[None]:
    """Returns a context in which torch is called as it is, without the emulation's Python around every call.

    For code that names no CUDA device.
    """
    context: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return context


def _patch_cuda_functions() -> None:
    """Points the functions that Megatron calls by name at the CPU and its random generator."""
    from megatron.core.tensor_parallel import random as megatron_random

    def get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(state)

    def nothing(*_: Any, **__: Any) -> None:
        return None

    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.synchronize = nothing
    cuda.get_rng_state = get_rng_state
    cuda.set_rng_state = set_rng_state
    cuda.manual_seed = torch.manual_seed
    cuda.nvtx.range_push = nothing
    cuda.nvtx.range_pop = nothing
    megatron: Any = megatron_random
    megatron._get_cuda_rng_state = get_rng_state
    megatron._set_cuda_rng_state = set_rng_state
