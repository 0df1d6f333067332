"""What a micro batch brings to a rank, as the planner counts its activations."""

from __future__ import annotations

from dataclasses import dataclass

from neva.precision import FLOAT32, precision_named

FLOAT_BYTES = FLOAT32.num_bytes


@dataclass(frozen=True)
class MicroBatchSpec:
    """What one micro batch brings, and how much is recomputed.

    `recompute_layers` counts the layers of a unit (method uniform) or the recomputed layers of a stage (block).
    """

    precision: str
    micro_batch_size: int
    sequence_length: int
    images: int
    """Tiles of them all, where they are cut."""
    label_share: float
    recompute: str | None
    recompute_method: str
    recompute_layers: int
    context: int
    sequence_parallel: bool
    fused_norm: bool
    """On a GPU torch's RMSNorm keeps its input and a number a row; elsewhere float32 copies of input and result."""

    @property
    def width(self) -> int:
        """Bytes of an activation's element."""
        return precision_named(self.precision).num_bytes

    @property
    def tokens(self) -> int:
        """Positions of a micro batch on one rank."""
        return self.micro_batch_size * self.sequence_length // self.context

    @property
    def label_tokens(self) -> int:
        """Positions with a loss among `tokens`."""
        return round(self.tokens * self.label_share)
