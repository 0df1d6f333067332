"""Imports at the start of a process, in two thirds of their time."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within, modules are imported without work that has no effect on what they are.

    No garbage is collected: torch, Lightning, NeMo and Megatron fill a process with objects that stay, and every
    collection would walk through them. And functions that Megatron decorates with `torch.compile` stay plain Python,
    which spares torch's compiler: those are kernels of fusions that `neva.model.language` switches off. Outside,
    `torch.compile` does what it did.
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        with patch.dict(os.environ, TORCHDYNAMO_DISABLE="1"):
            yield
    finally:
        if was_collecting:
            gc.enable()
