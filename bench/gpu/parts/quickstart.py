"""The quickstart's commands on the GPU beside the CPU: train, resume, export with its proof, answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.gpu.sheet import Sheet
from examples.quickstart.data import write_data
from neva.training.callbacks import read_metrics

STEPS = 20
RESUMED_STEPS = 24
TOLERANCE = 2e-3
LIMIT_S, TINY_LIMIT_S = 60, 500
"""Of one command; a laptop with two cores takes its time."""
CPU, GPU = "cpu", "here"


def quickstart(sheet: Sheet) -> None:
    """A row for each command; the commands that do not need each other run at once."""
    write_data(sheet.folder / "datasets/quickstart", copies=1, questions_per_conversation=4, seed=0)
    steps = 3 if sheet.tiny else STEPS
    with sheet.row(f"neva train --config-name quickstart_pretrain, {steps} steps, float32") as row:
        started = [train(sheet, GPU, steps), train(sheet, CPU, steps)]
        for process, name in zip(started, (GPU, CPU), strict=True):
            finish(sheet, process, f"training on {name}")
        ours, reference = (losses(sheet.folder, name) for name in (GPU, CPU))
        row["losses"] = " … ".join(f"{loss:.5f}" for loss in (ours[0], ours[-1]))
        row["losses on the CPU"] = " … ".join(f"{loss:.5f}" for loss in (reference[0], reference[-1]))
        differences = [abs(a - b) / b for a, b in zip(ours, reference, strict=True)]
        row["largest difference"] = f"{max(differences):.1e}"
        row["first step's"] = f"{differences[0]:.1e}"
        row["within 2e-3"] = len(ours) == steps and max(differences) <= TOLERANCE
    further(sheet)


def further(sheet: Sheet) -> None:
    """Resumes, exports and answers with what was trained."""
    more = 5 if sheet.tiny else RESUMED_STEPS
    nemo = next((sheet.folder / "nemo_experiments" / GPU / "checkpoints").glob("*.nemo"))
    kept = sheet.folder / "trained.nemo"
    kept.write_bytes(nemo.read_bytes())  # the resumed run writes its own
    prompts = (sheet.folder / "datasets/quickstart/test.jsonl").read_text().splitlines()[:16]
    (sheet.folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    started = {
        "the same, resumed from its checkpoint": train(sheet, GPU, more),
        "neva convert to a Hugging Face folder, with its proof": neva(
            sheet, GPU, "convert", str(kept), str(sheet.folder / "exported")
        ),
        "neva infer, 16 prompts": neva(
            sheet, GPU, "infer", "--config-name", "quickstart_inference",
            f"neva_model_file={kept}", "prompt_file=prompts.jsonl", "output_file=answers.jsonl",
        ),
    }  # fmt: skip
    for name, process in started.items():
        with sheet.row(name) as row:
            finish(sheet, process, name)
            row["result"] = "done"
            if "resumed" in name:
                row["result"] = f"{len(losses(sheet.folder, GPU))} steps in its metrics, {more} expected"
            if "convert" in name:
                found = json.loads((sheet.folder / "exported/parity.json").read_text())
                row["result"] = f"proved: {', '.join(sorted(found))}"[:160]
            if "infer" in name:
                answers = (sheet.folder / "answers.jsonl").read_text().splitlines()
                row["result"] = f"{len(answers)} answers"


def train(sheet: Sheet, name: str, steps: int) -> subprocess.Popen[bytes]:
    """Starts a training run of the report's folder."""
    small = ["model.global_batch_size=8", "model.micro_batch_size=8"] if sheet.tiny else []
    return neva(
        sheet, name, "train", "--config-name", "quickstart_pretrain", f"exp_manager.name={name}",
        f"trainer.max_steps={steps}", *small,
    )  # fmt: skip


def neva(sheet: Sheet, name: str, *words: str) -> subprocess.Popen[bytes]:
    """Starts `neva` in the report's folder; the process named CPU sees no GPU. Its output goes to the log."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "6")}
    if name == CPU or not torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command: Sequence[str] = [sys.executable, "-m", "neva", *words]
    return subprocess.Popen(command, cwd=sheet.folder, env=environment, stdout=sys.stderr)


def finish(sheet: Sheet, process: subprocess.Popen[bytes], name: str) -> None:
    """Waits for a command.

    Raises:
        RuntimeError: it failed.
    """
    try:
        code = process.wait(timeout=TINY_LIMIT_S if sheet.tiny else LIMIT_S)
    finally:
        process.kill()
    if code:
        raise RuntimeError(f"{name} ended with {code}: see the log")


def losses(folder: Path, name: str) -> list[float]:
    """Returns the losses of a run, oldest first."""
    return [row["loss"] for row in read_metrics(folder / "nemo_experiments" / name)]
