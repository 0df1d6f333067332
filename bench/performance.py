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

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/performance.md"

STEPS = [
    ("small", "all", "plain", "float32", 2),
    ("job", "pretrain", "plain", "float32", 2),
    ("job", "finetune", "plain", "float32", 2),
    ("job", "pretrain", "tuned", "float32", 2),
    ("job", "finetune", "tuned", "float32", 2),
    ("job", "finetune", "tuned", "float32", 1),
    ("job", "pretrain", "tuned", "bfloat16", 2),
    ("job", "finetune", "tuned", "bfloat16", 2),
    ("job", "all", "tuned", "float32", 2),
]
"""Shape, what trains, the other side, dtype and threads."""

TEMPLATE = ROOT / "bench/performance_page.md"


def row(case: tuple[str, str, str, str, int], steps: int) -> str:
    """Runs a comparison of training steps and returns its line of the table."""
    shape, stage, against, dtype, threads = case
    words = ["--shape", shape, "--stage", stage, "--against", against, "--dtype", dtype]
    printed = run("train_step.py", *words, "--threads", str(threads), "--steps", str(steps))
    found: dict[str, Any] = json.loads(printed[printed.index("{") :])
    step = found["step"]
    rates = [f"{step[f'{side}_samples_per_s']}" for side in ("neva", "transformers")]
    ratios = [
        f"{of['ratio']:.2f} ({of['first_quartile']:.2f} to {of['third_quartile']:.2f})"
        for of in (step, found["forward and backward"])
    ]
    return " | ".join(["", shape, stage, against, dtype, str(threads), *rates, *ratios, ""]).strip()


def run(script: str, *words: str) -> str:
    """Returns what a script of this folder prints."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "bench" / script), *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout


def main() -> None:
    """Measures and writes the page, row by row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12, help="training steps of each side")
    parser.add_argument("--runs", type=int, default=5, help="runs of the answers of each side")
    parser.add_argument("--output", type=Path, default=PAGE)
    arguments = parser.parse_args()
    versions = f"torch {torch.__version__}, transformers {version('transformers')}"
    steps = []
    for case in STEPS:
        steps.append(row(case, arguments.steps))
        print(steps[-1], flush=True)
    flags = ["--shape", "job", "--stage", "finetune", "--against", "tuned"]
    where = run("where.py", *flags)
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
