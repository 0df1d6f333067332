"""`results.json`: what was measured of one model, by whom, with which versions."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

from neva import __version__
from neva.errors import DataError, UserError
from neva.formats.atomic_write import finished_target
from neva.formats.json import json_text, read_object

FILE = "results.json"


class Entry(TypedDict):
    """What one benchmark gave.

    Attributes:
        by: `neva`, or the kit that scored.
        benchmark: its name or file.
        metric: the figure to compare; None where there is no score.
        score: its value.
        scores: all figures, by category where there are categories.
        questions: how many were asked.
        unanswered: how many of them have no answer, and count as wrong.
        problem: why there is no score, or None.
        prompts: whose instructions stand around a question.
        first_prompt: as the model saw it, or None where that is not known.
        versions: of what ran the model and the scoring.
        files: where the details are, seen from `results.json`.
        finished: time.
    """

    by: str
    benchmark: str
    metric: str | None
    score: float | None
    scores: dict[str, Any]
    questions: int | None
    unanswered: int | None
    problem: str | None
    prompts: str
    first_prompt: str | None
    versions: dict[str, str | None]
    files: str | None
    finished: str


def name_of(entry: Entry) -> str:
    """Returns what tells an entry apart within a file."""
    return f"{entry['by']}/{entry['benchmark']}"


def now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def own_versions() -> dict[str, str | None]:
    """Returns the versions of neva and of what answers with it here."""
    return {"neva": __version__, "python": platform.python_version(), "torch": _version("torch")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read_results(path: Path) -> dict[str, Any]:
    """Returns the content of a `results.json`, or of the one in a folder.

    Raises:
        DataError: there is none, or it is something else.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"no results at {path}; expected what neva evaluate has written")
    found = read_object(path, DataError)
    if not isinstance(found.get("benchmarks"), dict):
        raise DataError(f"{path} is no {FILE} of neva evaluate")
    return found


def refuse_done(folder: Path, names: list[str], is_forced: bool) -> None:
    """Raises UserError when a benchmark has its score already, and is not to be measured again."""
    if is_forced or not (folder / FILE).exists():
        return
    benchmarks = read_results(folder)["benchmarks"]
    if done := [name for name in names if name in benchmarks and benchmarks[name]["problem"] is None]:
        raise UserError(
            f"{folder / FILE} has {', '.join(done)} already; pass --force to measure again, or choose another --output"
        )


def add_results(folder: Path, model: str, entries: list[Entry]) -> Path:
    """Puts entries into the `results.json` of a folder, each in the place of an older one of its name.

    Raises:
        DataError: the file is another model's.
    """
    path = folder / FILE
    found: dict[str, Any] = read_results(folder) if path.exists() else {"model": model, "benchmarks": {}}
    if found["model"] != model:
        raise DataError(f"{path} is of {found['model']}, not of {model}: choose another --output")
    found["benchmarks"] |= {name_of(entry): entry for entry in entries}
    with finished_target(path, overwrite=True) as temporary:
        temporary.write_text(json_text(found) + "\n", encoding="utf-8")
    return path
