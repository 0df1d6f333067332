"""What neva is worth beside transformers on this machine, as docs/performance.md: each figure from a command below.

python bench/performance.py [--steps 12] [--runs 5] [--output docs/performance.md]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from neva.formats.atomic_write import finished_target

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.step_batches import EVEN
from bench.train_step import parser

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/performance.md"

STEPS = [
    "--shape small --stage all",
    "--shape job --stage pretrain",
    "--shape job --stage finetune",
    "--shape job --stage pretrain --against tuned",
    "--shape job --stage finetune --against tuned",
    "--shape job --stage finetune --against tuned --threads 1",
    "--shape job --stage pretrain --against tuned --dtype bfloat16",
    "--shape job --stage finetune --against tuned --dtype bfloat16",
    "--shape job --stage all --against tuned",
    "--shape job --stage pretrain --against tuned --recompute",
    "--shape job --stage finetune --against tuned --recompute",
    "--shape job --stage finetune --against tuned --recompute --dtype bfloat16",
    "--shape job --stage finetune --batch mixed",
    "--shape job --stage finetune --against tuned --batch mixed",
    "--shape job --stage finetune --against tuned --batch mixed --recompute",
    "--shape job --stage finetune --against tuned --batch grouped",
]
"""Flags of `train_step.py`, a row each."""

TEMPLATE = ROOT / "bench/performance_page.md"


def row(flags: str, steps: int) -> str:
    """Runs a comparison of training steps and returns its line of the table."""
    case = parser(None).parse_args(flags.split())
    steps = steps if case.batch == EVEN else max(3, steps // 3)  # each of four times as many samples
    printed = run("train_step.py", *flags.split(), "--steps", str(steps))
    found: dict[str, Any] = json.loads(printed[printed.index("{") :])
    step = found["step"]
    ratios = [
        f"{of['ratio']:.2f} ({of['first_quartile']:.2f} to {of['third_quartile']:.2f})"
        for of in (step, found["forward and backward"])
    ]
    named = (
        case.shape,
        case.stage,
        case.against,
        case.batch,
        "yes" if case.recompute else "",
        case.dtype,
        case.threads,
    )
    rates = (step["neva_samples_per_s"], step["transformers_samples_per_s"])
    return f"| {' | '.join(map(str, (*named, *rates, *ratios)))} |"


def run(script: str, *words: str) -> str:
    """Returns what a script of this folder prints."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "bench" / script), *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout


def main() -> None:
    """Measures and writes the page, row by row."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--steps", type=int, default=12, help="training steps of each side")
    flags.add_argument("--runs", type=int, default=5, help="runs of the answers of each side")
    flags.add_argument("--output", type=Path, default=PAGE)
    arguments = flags.parse_args()
    versions = f"torch {torch.__version__}, transformers {version('transformers')}"
    steps = []
    for case in STEPS:
        steps.append(row(case, arguments.steps))
        print(steps[-1], flush=True)
    where = run("where.py", *["--shape", "job", "--stage", "finetune", "--against", "tuned"])
    answers = run("generate.py", "--runs", str(arguments.runs)).splitlines()
    page = TEMPLATE.read_text().format(
        machine=f"{os.cpu_count()} cores ({platform.machine()}), {versions}.",
        steps="\n".join(steps),
        where="\n".join(line for line in where.splitlines() if line.startswith("|")),
        answers="\n".join(line for line in answers if line.startswith("|")),
    )
    with finished_target(arguments.output, overwrite=True) as target:
        target.write_text(page)
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
