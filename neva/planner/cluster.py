"""The machines that a layout runs on: what their GPUs compute and how fast they reach each other."""

from __future__ import annotations

from dataclasses import dataclass, fields

from neva.errors import ConfigError
from neva.planner.devices import PEAK_BF16

EFFICIENCY = 0.45
"""Share of the peak that a GPU computes at: steps of 7B's widths on an H200 reach 44 to 47 %, recomputation counted
(docs/gpu.md)."""
LINK_SHARE = 0.8
"""Share of a link's rate that a large message gets (NCCL's bus bandwidth, of what data sheets say)."""


@dataclass(frozen=True)
class Cluster:
    """Nodes that are alike; units are those of data sheets, see docs/plan.md."""

    nodes: int
    gpus: int
    """Of a node."""
    memory: float
    """GiB of a GPU."""
    nvlink: float
    """GB/s of a GPU to the others of its node, both directions together."""
    ib: float
    """Gbit/s of a GPU to other nodes, in each direction."""
    tflops: float = PEAK_BF16["H100"] / 1e12
    """Dense bf16 peak of a GPU, TFLOP/s."""
    efficiency: float = EFFICIENCY

    @property
    def world(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus

    @property
    def flops(self) -> float:
        """What a GPU computes, FLOP/s."""
        return self.tflops * 1e12 * self.efficiency

    def bandwidth(self, ranks: int, stride: int) -> float:
        """Returns bytes a second, each direction, that a rank sends in a group of `ranks`, every `stride`-th GPU.

        A group within a node has its links. Beyond it, the ranks that a node has in the group share out what leaves it,
        each through its own card.
        """
        inside = self.nvlink / 2 * 1e9 * LINK_SHARE
        if ranks * stride <= self.gpus:
            return inside
        return min(inside, max(1, self.gpus // stride) * self.ib / 8 * 1e9 * LINK_SHARE)


def cluster_of(text: str) -> Cluster:
    """Reads `nodes=64,gpus=8,memory=80,nvlink=900,ib=400`.

    Raises:
        ConfigError: a word that is none of these, is no number above 0, or is missing.
    """
    known = {field.name: int if field.type == "int" else float for field in fields(Cluster)}
    needed = ("nodes", "gpus", "memory", "nvlink", "ib")
    given: dict[str, float] = {}
    for word in text.split(","):
        name, _, value = word.strip().partition("=")
        if name not in known:
            raise ConfigError(f"--cluster {text}: {name or 'an empty word'} is none of {', '.join(known)}")
        try:
            given[name] = known[name](value)
        except ValueError:
            given[name] = 0
        if not 0 < given[name] < float("inf"):
            kind = "a whole number" if known[name] is int else "a number"
            raise ConfigError(f"--cluster {text}: {name}={value}, expected {kind} above 0")
    if missing := [name for name in needed if name not in given]:
        raise ConfigError(f"--cluster {text}: {', '.join(missing)} missing; give {', '.join(needed)}")
    if given.get("efficiency", EFFICIENCY) > 1:
        raise ConfigError(f"--cluster {text}: efficiency is a share of the peak, at most 1")
    return Cluster(**given)  # type: ignore[arg-type]
