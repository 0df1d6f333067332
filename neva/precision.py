"""What `trainer.precision` and `--precision` call a precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """A floating-point type: torch's name of it, and its bytes an element."""

    dtype_name: str
    num_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """Returns torch's dtype, for which torch is imported."""
        import torch

        return getattr(torch, self.dtype_name)

    @property
    def adam_bytes(self) -> int:
        """Bytes of optimizer state for a trained parameter: two float32 moments and, in 16 bits, a float32 weight."""
        return 2 * FLOAT32.num_bytes + (0 if self == FLOAT32 else FLOAT32.num_bytes)


FLOAT32 = Precision("float32", 4)
BFLOAT16 = Precision("bfloat16", 2)
FLOAT16 = Precision("float16", 2)

PRECISIONS = {
    "32": FLOAT32,
    "32-true": FLOAT32,
    "fp32": FLOAT32,
    "bf16": BFLOAT16,
    "bf16-mixed": BFLOAT16,
    "16": FLOAT16,
    "16-mixed": FLOAT16,
    "fp16": FLOAT16,
}
"""Every spelling that a converter takes; a recipe's `trainer.precision` is 32, bf16 or 16."""


def precision_named(name: object) -> Precision:
    """Returns the precision that a resolved configuration names."""
    return PRECISIONS[str(name)]


def set_matmul_precision(name: object) -> None:
    """Lets float32 products and convolutions use TF32 on GPUs, unless float32 is the precision that was asked for."""
    import torch

    is_exact = precision_named(name) == FLOAT32
    torch.set_float32_matmul_precision("highest" if is_exact else "high")
    torch.backends.cudnn.allow_tf32 = not is_exact


FLOAT8_MULTIPLE = 16
"""Of this many are rows and columns of matrices that are multiplied in 8-bit floats."""
