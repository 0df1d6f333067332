"""lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval): a package, from an environment of its own to results."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from neva.errors import ConfigError, UserError
from neva.evaluation.kits import kit
from neva.evaluation.kits.lmms_eval_data import FIGURES, write_task
from neva.evaluation.kits.local_data import is_local, read_local
from neva.evaluation.results import Entry, now
from neva.formats.json import read_object

NAME = "lmms-eval"
START = Path(__file__).with_name("lmms_eval_start.py")
MODEL = "model"
"""Link to the exported folder: in the kit's string of arguments, no path could have a comma."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def check(run: kit.KitRun) -> None:
    """Raises ConfigError for what this kit does not have, or when there is no Python for it."""
    if run.kit_path is not None:
        raise ConfigError("--kit-path: lmms-eval is a package; --kit-python names the Python that has it")
    if run.judge is not None:
        raise ConfigError(
            "--judge: lmms-eval takes the model that reads answers from its environment variables (MODEL_VERSION, "
            "OPENAI_API_KEY, OPENAI_API_URL)"
        )
    if run.is_plain and any(not is_local(name) for name in run.data):
        raise ConfigError(
            "--plain-prompts: the instructions of lmms-eval's own benchmarks are part of them; expected files in --data"
        )
    kit.check_python(run, KIT)
    if run.num_processes > 1 and not run.base_url:
        _check_gpus(run.num_processes)


def _check_gpus(processes: int) -> None:
    import torch

    if processes > (count := torch.cuda.device_count()):
        raise ConfigError(
            f"--nproc {processes}: lmms-eval shares questions over GPUs, of which there are {count}; "
            f"expected {f'1 to {count}' if count > 1 else 1}"
        )


def evaluate(run: kit.KitRun) -> list[Entry]:
    """Runs the kit and returns what it found of each benchmark.

    Files and the kit's own benchmarks are run one after the other: the first need neither its tasks nor the network.

    Raises:
        UserError: a model or a file that cannot be used, or a process of the kit that failed.
    """
    files = [read_local(Path(name), run.images, run.metric, NAME) for name in run.data if is_local(name)]
    official = [name for name in run.data if not is_local(name)]
    work = run.folder.resolve() / NAME
    tasks, cache = work / "tasks", work / "cache"
    if files:
        shutil.rmtree(tasks, ignore_errors=True)
        tasks.mkdir(parents=True)
        for file in files:
            write_task(file, tasks, run.max_new_tokens, run.is_plain)
    folder = None if run.base_url else kit.exported(run).resolve()
    entries = []
    if files:
        names = {file.name(): file.source.stem for file in files}
        environment = {**OFFLINE, "HF_DATASETS_CACHE": str(cache)}
        try:
            entries += _run(run, folder, names, ["--include_path", str(tasks)], environment)
        finally:
            shutil.rmtree(cache, ignore_errors=True)
    if official:
        entries += _run(run, folder, {name: name for name in official}, [], {})
    return entries


def _run(
    run: kit.KitRun, folder: Path | None, names: dict[str, str], words: list[str], environment: dict[str, str]
) -> list[Entry]:
    work = run.folder.resolve() / NAME
    work.mkdir(parents=True, exist_ok=True)
    report, settings = work / "report.json", work / "settings.json"
    report.unlink(missing_ok=True)
    (work / MODEL).unlink(missing_ok=True)
    if folder:
        (work / MODEL).symlink_to(folder)
    content = {
        "model": folder and MODEL,
        "name": run.model,
        "num_processes": run.num_processes,
        "tasks": list(names),
        "is_local": bool(words),
        "words": words,
        "report": str(report),
    }
    settings.write_text(json.dumps(content), encoding="utf-8")
    log = work / f"{'files' if words else 'official'}.log"
    sys.stderr.write(f"lmms-eval: {', '.join(names.values())}; its output: {log}\n")
    if run.base_url:
        # the kit's client starts with some key alone
        key = os.environ.get("OPENAI_API_KEY", "none")
        environment = {**environment, "OPENAI_API_BASE": run.base_url, "OPENAI_API_KEY": key}
    kit.start([*kit.python_words(run), str(START), str(settings), *run.more], work, log, environment)
    if not report.is_file():
        raise UserError(f"lmms-eval ended without a report: {log} has its output")
    found = read_object(report)
    return [
        _entry(run, title, tasks, found, problem)
        for name, shown in names.items()
        for title, tasks, problem in _parts(name, shown, found["benchmarks"][name])
    ]


def _parts(
    name: str, shown: str, found: dict[str, Any]
) -> list[tuple[str, dict[str, dict[str, Any]], str | None]]:
    """Returns what counts as a benchmark, with its tasks: the one asked for, or each of a group without a figure."""
    tasks: dict[str, dict[str, Any]] = found["tasks"]
    if found["problem"] or len(tasks) < 2:
        return [(shown, tasks, found["problem"])]
    if tasks.get(name, {}).get("figures"):
        return [(shown, {name: tasks[name], **tasks}, None)]
    return [(task, {task: row}, None) for task, row in tasks.items() if task != name]


def _entry(
    run: kit.KitRun, shown: str, tasks: dict[str, dict[str, Any]], found: dict[str, Any], problem: str | None
) -> Entry:
    rows = list(tasks.values())
    figures = rows[0]["figures"] if rows else {}
    metric = next((name for name, value in figures.items() if math.isfinite(value)), None)
    unanswered = sum(row["unanswered"] for row in rows)
    questions = sum(row["questions"] or 0 for row in rows)
    if problem is None and unanswered:
        problem = f"{unanswered} of {questions} questions have no answer, and count as wrong"
    elif problem is None and metric is None:
        for_others = any(row["is_for_submission"] for row in rows)
        problem = f"no score: {'submission' if for_others else 'the kit says nothing about it'}"
    return Entry(
        by=NAME,
        benchmark=shown,
        metric=metric,
        score=None if metric is None else figures[metric],
        scores=figures if len(rows) < 2 else {task: row["figures"] for task, row in tasks.items()},
        questions=questions or None,
        unanswered=unanswered if questions else None,
        problem=problem,
        prompts=_prompts(run),
        first_prompt=found["first_prompt"],
        versions=found["versions"],
        files=NAME,
        finished=now(),
    )


def _prompts(run: kit.KitRun) -> str:
    asked = "the question alone" if run.is_plain else "lmms-eval's own"
    return f"{asked}, chat template of the server" if run.base_url else asked


KIT = kit.register_kit(NAME, tuple(FIGURES), check, evaluate)
