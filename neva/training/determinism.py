"""Kernels that give the same bits in every run of a layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # torch refuses to be deterministic without it
    "NCCL_ALGO": "Tree",  # a choice by size and load would sum in other orders
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}
"""Read by the libraries when they start; what is set already stays."""


@contextmanager
def deterministic(is_on: bool) -> Iterator[None]:
    """Has torch, cuBLAS and NCCL choose such kernels, before any of them starts; an operation without one raises.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html and Megatron's `--deterministic-mode`.
    """
    if not is_on:
        yield
        return
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    filling: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False  # it guards against reading what was never written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filling.fill_uninitialized_memory = before[1]
