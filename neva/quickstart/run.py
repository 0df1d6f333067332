"""`make quickstart`: data, two training stages, all test questions, scores."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from neva.quickstart import data, report

DATA = Path("datasets/quickstart")
RUNS = Path("nemo_experiments")
RUN = RUNS / "quickstart_finetune"
COPIES, QUESTIONS_PER_CONVERSATION, SEED = 8, 4, 1234

NEXT = r"""next:
  ask your own question about an image (64x64 works best):
    echo '{"prompt": "<image>\\nwhat color is the shape?", "image": "test_7.png", "system": ""}' > prompt.jsonl
    NEMO_CONFIG=quickstart_inference python scripts/neva_inference.py prompt_file=prompt.jsonl output_file=answer.jsonl
  train stage 2 again with another learning rate:
    NEMO_CONFIG=quickstart_finetune python scripts/neva_finetune.py \
      model.optim.lr=1e-4 trainer.max_steps=20 exp_manager.name=x
  watch the curves:
    tensorboard --logdir nemo_experiments
  check a real LLaVA-1.5 run before you have its weights:
    neva train --config-name llava_7b_pretrain --dry-run"""


def main(arguments: list[str] | None = None) -> None:
    """Runs the quickstart in the current folder; what is there already is not done again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="delete the quickstart's data and runs first")
    parser.add_argument("overrides", nargs="*", help="key=value, given to both training stages")
    options = parser.parse_args(arguments)
    if options.fresh:
        for folder in (DATA, RUNS / "quickstart_pretrain", RUN):
            shutil.rmtree(folder, ignore_errors=True)
    seconds = {}
    start = time.monotonic()
    say(f"easy-VQA in LLaVA format -> {DATA}")
    data.write_data(DATA, COPIES, QUESTIONS_PER_CONVERSATION, SEED)
    seconds["data"] = time.monotonic() - start
    for name, recipe, script, overrides in (
        ("pretrain", "quickstart_pretrain", "scripts/neva_pretrain.py", options.overrides),
        ("finetune", "quickstart_finetune", "scripts/neva_finetune.py", options.overrides),
        ("inference", "quickstart_inference", "scripts/neva_inference.py", []),
    ):
        seconds[name] = run(recipe, script, overrides)
    summarize(seconds)


def run(recipe: str, script: str, overrides: list[str]) -> float:
    """Runs one of the project's own commands as a user would and returns the seconds it took."""
    command = [sys.executable, script, *overrides]
    say(f"NEMO_CONFIG={recipe} python {' '.join(command[1:])}")
    start = time.monotonic()
    result = subprocess.run(command, env={**os.environ, "NEMO_CONFIG": recipe})
    if result.returncode:
        raise SystemExit(
            f"quickstart: {script} ended with exit code {result.returncode}; its last lines say why"
        )
    return time.monotonic() - start


def summarize(seconds: dict[str, float]) -> None:
    """Prints accuracy beside the baselines and leaves contact sheet and summary in the run folder."""
    rows = report.read_predictions(RUN / "predictions.jsonl")
    scores, base = report.accuracy(rows), report.baselines()
    report.draw_contact_sheet(rows, DATA / "images", RUN / "answers.png")
    summary = {
        "accuracy": scores,
        "baselines": base,
        "questions": len(rows),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    (RUN / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    total = sum(seconds.values())
    say(f"{len(rows)} test questions, each answered by generating text; {total / 60:.1f} minutes in all")
    for name, share in [("neva", scores["all"]), *base.items()]:
        print(f"  {name:<16} {share:6.1%}")
    print("  by kind: " + ", ".join(f"{name} {share:.1%}" for name, share in scores.items() if name != "all"))
    print(
        f"  {RUN}/: loss.png  answers.png  predictions.jsonl  summary.json  checkpoints/quickstart_finetune.nemo"
    )
    print(NEXT)


def say(text: str) -> None:
    """Prints one line of what happens now."""
    print(f"==> {text}", flush=True)
