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
from neva.evaluation.results import Entry, now
from neva.formats.json import read_object

NAME = "vlmevalkit"
START = Path(__file__).with_name("vlmevalkit_start.py")
SUBMITTED = ("submission", "without_ground_truth", "official_server")
"""In a reason why the kit gives no score: the answers are for somebody else to score."""


def check(run: kit.KitRun) -> None:
    """Raises ConfigError when there is no checkout, or no Python for it."""
    if run.kit_path is None:
        raise ConfigError(
            "--kit-path: VLMEvalKit is in no package registry; clone it (git clone "
            "https://github.com/open-compass/VLMEvalKit) and give its folder"
        )
    if not (run.kit_path / "run.py").is_file():
        raise ConfigError(f"--kit-path: {run.kit_path} has no run.py; expected a checkout of VLMEvalKit")
    kit.check_python(run.python, "VLMEvalKit", "make vlmevalkit builds its environment")


def benchmarks(run: kit.KitRun) -> list[str]:
    """Returns the names of the benchmarks in `results.json`.

    Raises:
        ConfigError: two files of one name.
    """
    names = [Path(name).stem if is_local(name) else name for name in run.data]
    if len(set(names)) < len(names):
        raise ConfigError(f"--data: two benchmarks have one name among {', '.join(names)}; rename a file")
    return names


def evaluate(run: kit.KitRun) -> list[Entry]:
    """Runs the kit and returns what it found of each benchmark.

    Files and the kit's own benchmarks are run one after the other, because each have a data folder of their own.

    Raises:
        UserError: a model or a file that cannot be used, or a process of the kit that failed.
    """
    files = [read_local(Path(name), run.images, run.metric) for name in run.data if is_local(name)]
    official = [name for name in run.data if not is_local(name)]
    folder = None if run.base_url else kit.exported(run).resolve()
    entries = []
    if files:
        data = run.folder.resolve() / NAME / "data"
        shutil.rmtree(
            data, ignore_errors=True
        )  # pictures that the kit had unpacked from another file of the name
        data.mkdir(parents=True)
        for file in files:
            file.write(data)
        names = {file.name: file.source.stem for file in files}
        entries += _run(run, folder, names, {"LMUData": str(data)}, _classes(files))
    if official:
        entries += _run(run, folder, {name: name for name in official}, {}, {})
    return entries


def _classes(files: Iterable[LocalData]) -> dict[str, dict[str, str]]:
    return {file.name: {"class": file.kit_class, "dataset": file.name} for file in files if file.kit_class}


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
        *_python(run),
        str(START),
        str(settings),
        "--model",
        model,
        "--data",
        *names,
        "--judge",
        run.judge,
    ]
    words += ["--work-dir", str(work)]
    words += ["--data-config", json.dumps(classes)] if classes else []
    words += ["--base-url", run.base_url, "--max-tokens", str(run.max_new_tokens)] if run.base_url else []
    words += ["--api-nproc", str(run.num_processes)] if run.base_url else []
    log = work / f"{'files' if classes or environment else 'official'}.log"
    sys.stderr.write(f"VLMEvalKit: {', '.join(names.values())}; its output: {log}\n")
    kit.start([*words, *run.more], run.kit_path.resolve(), log, environment)
    return _entries(run, names, report, log)


def _python(run: kit.KitRun) -> list[str]:
    python = [str(run.python.absolute())]
    if run.base_url or run.num_processes == 1:
        return python
    return [*python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.num_processes}"]


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


def is_failure(entry: Entry) -> bool:
    """Whether a benchmark has failed, and is not for somebody else to score."""
    problem = entry["problem"]
    return problem is not None and not any(word in problem for word in SUBMITTED)
