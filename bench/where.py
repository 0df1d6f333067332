"""Where a training step's time goes, by kind of operation, as torch's profiler attributes it.

    python bench/where.py [--shape job] [--stage finetune] [--against tuned] [--dtype float32] [--threads 2]

The flags are those of `train_step.py`. The profiler itself costs time, so shares are told, not seconds.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.train_step import WARM_UP, Job, Step, job_of, neva_steps, parser, transformers_steps

STEPS = 3
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::mkldnn_convolution"),
    "attention": ("aten::_scaled_dot_product",),
    "optimizer": ("aten::_fused_adam", "aten::_foreach", "aten::linalg_vector_norm", "Optimizer."),
    "compiled passes over memory": ("## Call CompiledFxGraph",),
    "other passes over memory": ("aten::",),
}
REST = "Python and autograd"


def kind_of(name: str) -> str:
    """Returns the first of `KINDS` whose names this one begins with."""
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), REST)


def shares(steps: Callable[[Job], Iterator[Step]], job: Job) -> dict[str, float]:
    """Returns the share of each kind in `STEPS` steps behind the first."""
    torch.set_num_threads(job.threads)
    runs = steps(job)
    for _ in range(WARM_UP):
        next(runs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            next(runs)
    found: Counter[str] = Counter()
    for event in profiler.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total
    return {kind: found[kind] / found.total() for kind in (*KINDS, REST)}


def main() -> None:
    """Measures one side after the other and prints a table."""
    arguments = parser(__doc__).parse_args()
    told: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        job = job_of(arguments, Path(name))
        for side in (neva_steps, transformers_steps):  # neva writes the other's weights
            with get_context("spawn").Pool(1) as process:
                told.append(process.apply(shares, (side, job)))
    print("| | neva | transformers |\n|---|---|---|")
    for kind in told[0]:
        print(f"| {kind} | " + " | ".join(f"{side[kind]:.0%}" for side in told) + " |")


if __name__ == "__main__":
    main()
