"""The process of one part: `python -m bench.gpu.child PART ROWS FOLDER [--tiny]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bench.gpu.sheet import Sheet


@dataclass(frozen=True)
class Part:
    """A function of `bench.gpu.parts` by module and name, its heading, and seconds after which it is ended."""

    heading: str
    module: str
    limit_s: float


STEPS = "Training steps, bf16, LLaVA-1.5 7B's widths"
STATE = "Process group, offloading, FSDP, float16"
PARTS = {
    "environment": Part("Environment", "environment", 60),
    "sft_full": Part(STEPS, "steps", 90),
    "sft_none": Part(STEPS, "steps", 75),
    "sft_compiled": Part(STEPS, "steps", 120),
    "sft_fp8": Part(STEPS, "steps", 120),
    "agreement": Part("GPU against CPU", "agreement", 90),
    "quickstart": Part("The quickstart's commands", "quickstart", 150),
    "megatron": Part(STATE, "backends", 150),
    "fsdp": Part(STATE, "backends", 75),
    "kernels": Part("Kernels", "kernels", 75),
    "generation": Part("Generation, bf16, LLaVA-1.5 7B's widths", "generation", 90),
    "projector": Part(STEPS, "steps", 90),
    "sft_selective": Part(STEPS, "steps", 75),
}
"""In the order in which they run: what is wanted most comes first."""


def main(arguments: list[str]) -> None:
    """Runs the part that is named first."""
    name, rows, folder = arguments[:3]
    module = import_module(f"bench.gpu.parts.{PARTS[name].module}")
    getattr(module, name)(Sheet(name, Path(rows), Path(folder), "--tiny" in arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
