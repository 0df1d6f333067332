"""Megatron-core on a machine without CUDA.

Megatron writes `device="cuda"`, `torch.cuda.current_device()` and `Tensor.cuda()` into its layers, schedules and
optimizers. `install()` gives those spellings a meaning on the CPU, once per process, and does nothing where CUDA is
present: every line above this module is the same on a laptop and on a cluster. `cpu_only()` does the same for a while
where CUDA is present, for what is computed on the CPU on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_active: CudaOnCpu | None = None


class CudaOnCpu(TorchFunctionMode):
    """Rewrites CUDA devices in torch calls to the CPU, as `torch.set_default_device` rewrites missing ones.

    Args:
        device: that stands for CUDA; another than the CPU where nothing is computed.
    """

    def __init__(self, device: torch.device = _CPU) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0].to(self.device)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's optimizers compare with 'torch.cuda.FloatTensor'.
            return f"torch.cuda.{func(*args).rpartition('.')[2]}"
        if func is torch.Tensor.to:
            args = tuple(map(self._replaced, args))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self._replaced(kwargs["device"])}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)

    def _replaced(self, value: Any) -> Any:
        """Returns the device in the place of anything that names a CUDA device, else the value itself."""
        is_cuda = (isinstance(value, str) and value.startswith("cuda")) or (
            isinstance(value, torch.device) and value.type == "cuda"
        )
        return self.device if is_cuda else value


def install() -> torch.device:
    """Makes Megatron usable in this process and returns the device to train on.

    Returns:
        The current CUDA device, or the CPU with CUDA's names emulated. Calling it again changes nothing.
    """
    if _active is not None:
        return _active.device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    _activate()
    return _CPU


def suspended() -> AbstractContextManager[None]:
    """Returns a context in which torch is called as it is, without the emulation's Python around every call.

    For code that names no CUDA device.
    """
    context: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return context


@contextmanager
def cpu_only() -> Iterator[None]:
    """Has `install()` return the CPU inside, also on a machine with GPUs; a model on the CPU then runs as one."""
    if install() == _CPU:
        yield
        return
    with on_device(_CPU):
        yield


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Has another device stand for CUDA inside."""
    before = _active
    replaced = _activate(device)
    try:
        yield
    finally:
        _deactivate(replaced, before)


def _activate(device: torch.device = _CPU) -> list[tuple[Any, str, Any]]:
    """Emulates CUDA's names from now on; returns what `_deactivate` needs to end it."""
    global _active
    functions = _cpu_functions(device)
    replaced = [(owner, name, getattr(owner, name)) for owner, name, _ in functions]
    for owner, name, function in functions:
        setattr(owner, name, function)
    _active = CudaOnCpu(device)
    _active.__enter__()
    return replaced


def _deactivate(replaced: list[tuple[Any, str, Any]], before: CudaOnCpu | None) -> None:
    global _active
    assert _active is not None
    _active.__exit__(None, None, None)
    _active = before
    for owner, name, function in replaced:
        setattr(owner, name, function)


class _StreamOnCpu:
    """A stream on which everything is done when it is asked for."""

    def wait_stream(self, other: _StreamOnCpu) -> None:
        """Nothing to wait for."""

    def record_event(self) -> _StreamOnCpu:
        """Returns an event that has come."""
        return self

    def synchronize(self) -> None:
        """Nothing to wait for."""


def _cpu_functions(device: torch.device) -> list[tuple[Any, str, Any]]:
    """What Megatron calls by name, as owner, name, and what serves on the CPU with its generator."""
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.moe import token_dispatcher

    from neva.distributed import uneven

    def get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(state)

    def to_cpu(tensor: Any, as_numpy: bool = False, **_: Any) -> Any:
        # torch's all-to-all takes sizes as numpy's numbers, not as tensors
        return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor

    def nothing(*_: Any, **__: Any) -> None:
        return None

    return [
        (torch.cuda, "current_device", lambda: device),
        (torch.cuda, "synchronize", nothing),
        (torch.cuda, "get_rng_state", get_rng_state),
        (torch.cuda, "set_rng_state", set_rng_state),
        (torch.cuda, "manual_seed", torch.manual_seed),
        (torch.cuda, "current_stream", _StreamOnCpu),
        (torch.cuda, "stream", nullcontext),
        (token_dispatcher.MoEAlltoAllTokenDispatcher, "cuda_dtoh_stream", _StreamOnCpu()),
        (uneven.mappings, "_gather_along_first_dim", uneven.gather),
        (uneven.mappings, "_reduce_scatter_along_first_dim", uneven.reduce_scatter),
        (token_dispatcher, "maybe_move_tensor_to_cpu", to_cpu),
        (torch.cuda.nvtx, "range_push", nothing),
        (torch.cuda.nvtx, "range_pop", nothing),
        (megatron_random, "_get_cuda_rng_state", get_rng_state),
        (megatron_random, "_set_cuda_rng_state", set_rng_state),
    ]
