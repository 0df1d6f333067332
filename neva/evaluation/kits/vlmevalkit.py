"""VLMEvalKit (https://github.com/open-compass/VLMEvalKit): from a checkout, which stays as it is, to results.

Its `run.py` returns 0 whatever happened; what did is read from `status.json` and from its own report of failed answers.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neva.errors import ConfigError, UserError
from neva.evaluation.kits import kit
from neva.evaluation.kits.local_data import LocalData, is_local, read_local
from neva.evaluation.kits.vlmevalkit_data import SCORED_AS, kit_class, kit_name, write_tsv
from neva.evaluation.results import Entry, now
from neva.formats.json import read_object

NAME = "vlmevalkit"
START = Path(__file__).with_name("vlmevalkit_start.py")
NO_JUDGE = "exact_matching"
"""As the kit calls it that no model reads answers."""


def check(run: kit.KitRun) -> None:
    """Raises ConfigError when there is no checkout, or no Python for it."""
    if run.kit_path is None:
        raise ConfigError(
            "--kit-path: VLMEvalKit is in no package registry; clone it (git clone "
            "https://github.com/open-compass/VLMEvalKit) and give its folder"
        )
    if not (run.kit_path / "run.py").is_file():
        raise ConfigError(f"--kit-path: {run.kit_path} has no run.py; expected a checkout of VLMEvalKit")
    kit.check_python(run, KIT)
    if run.base_url and run.is_plain:
        raise ConfigError("--plain-prompts: with --base-url VLMEvalKit itself makes the prompts")


def evaluate(run: kit.KitRun) -> list[Entry]:
    """Runs the kit and returns what it found of each benchmark.

    Files and the kit's own benchmarks are run one after the other, because each have a data folder of their own.

    Raises:
        UserError: a model or a file that cannot be used, or a process of the kit that failed.
    """
    files = [read_local(Path(name), run.images, run.metric, NAME) for name in run.data if is_local(name)]
    official = [name for name in run.data if not is_local(name)]
    data = run.folder.resolve() / NAME / "data"
    if files:
        # pictures that the kit had unpacked from another file of the name
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True)
        for file in files:
            write_tsv(file, data)
    folder = None if run.base_url else kit.exported(run).resolve()
    entries = []
    if files:
        names = {kit_name(file): file.source.stem for file in files}
        entries += _run(run, folder, names, {"LMUData": str(data)}, _classes(files))
    if official:
        entries += _run(run, folder, {name: name for name in official}, {}, {})
    return entries


def _classes(files: Iterable[LocalData]) -> dict[str, dict[str, str]]:
    names = {kit_name(file): kit_class(file) for file in files}
    return {name: {"class": found, "dataset": name} for name, found in names.items() if found}


def _run(
    run: kit.KitRun,
    folder: Path | None,
    names: dict[str, str],
    environment: dict[str, str],
    classes: dict[str, dict[str, str]],
) -> list[Entry]:
    work = run.folder.resolve() / NAME
    work.mkdir(parents=True, exist_ok=True)
    model = Path(run.model).stem if folder else run.model
    report, settings = work / "report.json", work / "settings.json"
    report.unlink(missing_ok=True)
    assert run.kit_path is not None
    content = {
        "kit": str(run.kit_path.resolve()),
        "name": model,
        "model": folder and str(folder),
        "max_new_tokens": run.max_new_tokens,
        "is_plain": run.is_plain,
        "work": str(work),
        "report": str(report),
    }
    settings.write_text(json.dumps(content), encoding="utf-8")
    words = [
        *kit.python_words(run),
        str(START),
        str(settings),
        "--model",
        model,
        "--data",
        *names,
        "--judge",
        run.judge or NO_JUDGE,
    ]
    words += ["--work-dir", str(work)]
    words += ["--data-config", json.dumps(classes)] if classes else []
    words += ["--base-url", run.base_url, "--max-tokens", str(run.max_new_tokens)] if run.base_url else []
    words += ["--api-nproc", str(run.num_processes)] if run.base_url else []
    log = work / f"{'files' if classes or environment else 'official'}.log"
    sys.stderr.write(f"VLMEvalKit: {', '.join(names.values())}; its output: {log}\n")
    kit.start([*words, *run.more], run.kit_path.resolve(), log, environment)
    return _entries(run, names, report, log)


def _entries(run: kit.KitRun, names: dict[str, str], path: Path, log: Path) -> list[Entry]:
    report = read_object(path) if path.is_file() else {}
    if not report.get("run"):
        raise UserError(f"VLMEvalKit ended without a status.json: {log} has its output")
    status = read_object(Path(report["run"]) / "status.json").get("datasets", {})
    rows = {row["benchmark"]: row for row in report["rows"]}
    return [
        _entry(run, name, shown, status.get(name, {}), rows.get(name, {}), report)
        for name, shown in names.items()
    ]


def _entry(
    run: kit.KitRun,
    name: str,
    shown: str,
    status: dict[str, Any],
    row: dict[str, Any],
    report: dict[str, Any],
) -> Entry:
    metrics = status.get("metrics") or {}
    metric, score = _primary(row.get("primary_metric"), row.get("primary_metric_value"), metrics)
    return Entry(
        by=NAME,
        benchmark=shown,
        metric=metric,
        score=score,
        scores=metrics,
        questions=row.get("infer_total"),
        unanswered=row.get("infer_failed"),
        problem=_problem(status, row, score),
        prompts=_prompts(run),
        first_prompt=report.get("first_prompt"),
        versions=report["versions"],
        files=str(Path(report["run"]).relative_to(run.folder.resolve())),
        finished=now(),
    )


def _prompts(run: kit.KitRun) -> str:
    if run.base_url:
        return "VLMEvalKit's own, chat template of the server"
    return "the question alone" if run.is_plain else "VLMEvalKit's for llava_v1.5"


def _primary(name: Any, value: Any, metrics: dict[str, Any]) -> tuple[str | None, float | None]:
    """Returns the figure to compare; of several, the first; where the kit names none, `Overall` or the first."""
    names = [name] if isinstance(name, str) else list(name or [])
    values = value if isinstance(value, dict) else dict.fromkeys(names, value)
    usual = [key for key in metrics if key.lower().startswith("overall")] or list(metrics)
    for key in [*names, *usual]:
        found = values.get(key, metrics.get(key))
        if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found):
            return key, float(found)
    return None, None


def _problem(status: dict[str, Any], row: dict[str, Any], score: float | None) -> str | None:
    """Returns why there is no score that can be trusted, or None."""
    if error := status.get("error_message") or row.get("eval_error"):
        return str(error)
    if row.get("infer_failed"):
        return f"{row['infer_failed']} of {row['infer_total']} questions have no answer, and count as wrong"
    reason = status.get("skip_reason")
    if score is None:
        return f"no score: {reason or 'the kit says nothing about it'}"
    return None


KIT = kit.register_kit("VLMEvalKit", tuple(SCORED_AS), check, evaluate)
