"""`make quickstart`: data, two training stages, all test questions, scores, export to transformers."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from examples.quickstart import data, report

DATA = Path("datasets/quickstart")
RUNS = Path("nemo_experiments")
RUN = RUNS / "quickstart_finetune"
TRAINED, EXPORT = RUN / "checkpoints" / "quickstart_finetune.nemo", RUN / "hf"
HF_ANSWERS = Path(__file__).with_name("hf_answers.py")
QUESTIONS_TO_TRANSFORMERS, ANSWERS = 200, "hf_answers.json"
COPIES, QUESTIONS_PER_CONVERSATION, SEED = 8, 10, 1234

NEXT = r"""next, in the environment (. ACTIVATE):
  ask your own question about an image (64x64 works best):
    echo '{"prompt": "what color is the shape?", "image": "test_7.png"}' > prompt.jsonl
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
    start = time.monotonic()
    exported = ask_transformers()
    seconds["export"] = time.monotonic() - start
    summarize(seconds, exported)
    if others := exported["questions"] - exported["equal_answers"]:
        raise SystemExit(f"quickstart: transformers gives {others} other answers, see {RUN / ANSWERS}")


def run(recipe: str, script: str, overrides: list[str]) -> float:
    """Runs one of the project's own commands as a user would and returns the seconds it took."""
    say(f"NEMO_CONFIG={recipe} python {' '.join([script, *overrides])}")
    start = time.monotonic()
    call([script, *overrides], {"NEMO_CONFIG": recipe})
    return time.monotonic() - start


def call(arguments: list[str], environment: dict[str, str]) -> None:
    """Runs this Python with `arguments`; SystemExit with a sentence when that fails."""
    result = subprocess.run([sys.executable, *arguments], env={**os.environ, **environment})
    if result.returncode:
        name = " ".join(arguments[:3]) if arguments[0] == "-m" else arguments[0]
        raise SystemExit(
            f"quickstart: {name} ended with exit code {result.returncode}; its last lines say why"
        )


def ask_transformers() -> dict[str, float]:
    """Exports the model and has transformers answer the first questions from the export alone.

    Returns how many questions, how many answers are those of neva, and transformers' accuracy.
    """
    say(f"neva convert {TRAINED} {EXPORT}")
    call(["-m", "neva", "convert", str(TRAINED), str(EXPORT), "--force"], {})
    count, output = QUESTIONS_TO_TRANSFORMERS, RUN / ANSWERS
    say(f"transformers answers the first {count} test questions from {EXPORT}")
    files = [EXPORT, DATA / "test.jsonl", DATA / "images", count, output]
    call([*map(str, [HF_ANSWERS, *files])], {})
    rows = report.read_predictions(RUN / "predictions.jsonl")[:count]
    answers = [{**row, "text": text} for row, text in zip(rows, json.loads(output.read_text()), strict=True)]
    equal = sum(row["text"].strip() == answer["text"] for row, answer in zip(rows, answers, strict=True))
    accuracy = report.accuracy(answers)["all"]
    print(f"  {equal} of {len(rows)} answers equal neva's; transformers' accuracy on them is {accuracy:.1%}")
    return {"questions": len(rows), "equal_answers": equal, "accuracy": accuracy}


def summarize(seconds: dict[str, float], exported: dict[str, float]) -> None:
    """Prints accuracy beside the baselines and leaves contact sheet and summary in the run folder."""
    rows = report.read_predictions(RUN / "predictions.jsonl")
    scores, base = report.accuracy(rows), report.baselines()
    report.draw_contact_sheet(rows, DATA / "images", RUN / "answers.png")
    summary = {
        "accuracy": scores,
        "baselines": base,
        "questions": len(rows),
        "transformers": exported,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    (RUN / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    total = sum(seconds.values())
    say(f"{len(rows)} test questions, each answered by generating text; {total / 60:.1f} minutes in all")
    for name, share in [("neva", scores["all"]), *base.items()]:
        print(f"  {name:<16} {share:6.1%}")
    print("  by kind: " + ", ".join(f"{name} {share:.1%}" for name, share in scores.items() if name != "all"))
    print(f"  {RUN}/: loss.png  answers.png  predictions.jsonl  summary.json")
    print(f"  {TRAINED}, and for transformers {EXPORT}/")
    print(NEXT.replace("ACTIVATE", activate_script()))


def activate_script() -> str:
    """Returns the file that a shell reads to enter this environment, as short as it can be typed from here."""
    script = Path(sys.prefix) / "bin" / "activate"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def say(text: str) -> None:
    """Prints one line of what happens now."""
    print(f"==> {text}", flush=True)
