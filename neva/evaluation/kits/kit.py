"""What the kits have in common: which model, which benchmarks, where, and how a kit's process is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from neva.errors import CheckpointError, ConfigError, UserError
from neva.evaluation.kits.local_data import is_local
from neva.evaluation.results import Entry
from neva.families.naming import LLAVA_HF
from neva.formats.hf_files import read_config
from neva.formats.nemo_header import is_nemo
from neva.registry import KITS

SHOWN_LINES = 12
"""Of a kit's log, when it fails."""
SUBMITTED = ("submission", "without_ground_truth", "official_server")
"""In a reason why a kit gives no score: the answers are for somebody else to score."""
LOOK_S, LAST_BYTES = 0.5, 400
"""How often a kit's log is looked at for its progress, and how much of its end."""
BAR = re.compile(r"[^\r\n]*\d+%\|[^\r\n]*\]")
"""A state of tqdm's bars."""


@dataclass(frozen=True)
class KitRun:
    """What a kit is to do.

    Attributes:
        model: `.nemo` or llava-hf folder; with `base_url`, the name that the server has for it.
        data: benchmarks: names that the kit knows, or files.
        folder: gets `results.json`, and the kit's own files below.
        python: interpreter of the kit's environment.
        kit_path: checkout, where the kit is no package; else None.
        base_url: of an OpenAI-compatible server that has the model; None: the kit's process loads it.
        images: folder of the images that prompt files name.
        metric: of local files; None: by their answers.
        num_processes: that share the questions, a GPU or more each.
        max_new_tokens: of an answer.
        judge: model that reads answers; None: no model.
        is_plain: questions as they stand, without the kit's instructions.
        more: arguments handed to the kit.
    """

    model: str
    data: tuple[str, ...]
    folder: Path
    python: Path
    kit_path: Path | None
    base_url: str | None
    images: Path | None
    metric: str | None
    num_processes: int
    max_new_tokens: int
    judge: str | None
    is_plain: bool
    more: tuple[str, ...]


@dataclass(frozen=True)
class Kit:
    """An evaluation kit.

    Attributes:
        name: that `--kit` gives.
        title: as its authors write it.
        python: of the environment that `make NAME` builds.
        metrics: by which it scores files, by neva's names.
        check: raises ConfigError for a run that the kit cannot do, before anything is started.
        evaluate: runs it and returns what it found of each benchmark; UserError when it did not run.
    """

    name: str
    title: str
    python: Path
    metrics: tuple[str, ...]
    check: Callable[[KitRun], None]
    evaluate: Callable[[KitRun], list[Entry]]


def register_kit(
    title: str,
    metrics: Sequence[str],
    check: Callable[[KitRun], None],
    evaluate: Callable[[KitRun], list[Entry]],
) -> Kit:
    """Adds a kit to `neva.registry.KITS` and returns it."""
    name = title.lower()
    kit = Kit(name, title, Path(f".venv-{name}/bin/python"), tuple(metrics), check, evaluate)
    return KITS.register(name, kit)


def benchmarks(run: KitRun) -> list[str]:
    """Returns the names of the benchmarks in `results.json`.

    Raises:
        ConfigError: two files of one name.
    """
    names = [Path(name).stem if is_local(name) else name for name in run.data]
    if len(set(names)) < len(names):
        raise ConfigError(f"--data: two benchmarks have one name among {', '.join(names)}; rename a file")
    return names


def is_failure(entry: Entry) -> bool:
    """Whether a benchmark has failed, and is not for somebody else to score."""
    problem = entry["problem"]
    return problem is not None and not any(word in problem for word in SUBMITTED)


def exported(run: KitRun) -> Path:
    """Returns the llava-hf folder of a run's model, which is written first where the model is a `.nemo`.

    Raises:
        CheckpointError: the model is something else.
    """
    model = Path(run.model)
    if not model.exists():
        raise CheckpointError(f"--model: nothing at {model}; expected a .nemo file or a llava-hf folder")
    folder = _export(model, run.folder / "hf") if is_nemo(model) else model
    kind = read_config(folder).get("model_type")
    if kind != LLAVA_HF.model_type:
        raise CheckpointError(
            f"--model: {model} is a {kind!r} model; expected a .nemo without tiles, or the llava-hf folder that neva "
            "convert writes of one; neva serve and --base-url ask any model"
        )
    return folder


def _export(nemo: Path, folder: Path) -> Path:
    """Exports a `.nemo` unless that was done since it was written."""
    report = folder / "parity.json"
    if not report.is_file() or report.stat().st_mtime < nemo.stat().st_mtime:
        # that Transformer Engine is absent, as intended
        warnings.filterwarnings("ignore", module=r"megatron\..*")
        from transformers.utils.logging import disable_progress_bar

        from neva.convert.convert import convert
        from neva.convert.options import Options

        disable_progress_bar()
        convert(nemo, folder, Options(overwrite=True))
    return folder


def check_python(run: KitRun, kit: Kit) -> None:
    """Raises ConfigError when there is no interpreter for a kit."""
    if not os.access(run.python, os.X_OK):
        raise ConfigError(
            f"--kit-python: no Python at {run.python} to run {kit.title} with: make {kit.name} builds its environment"
        )


def python_words(run: KitRun) -> list[str]:
    """Returns the command of the kit's Python, as many times as there are processes; a server is asked by one."""
    python = [str(run.python.absolute())]
    if run.base_url or run.num_processes == 1:
        return python
    return [*python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.num_processes}"]


def start(words: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
    """Runs a kit's process in a folder, its output to a log; a terminal shows its bar of progress.

    Raises:
        UserError: it ended with an error; the log's last lines are in the message.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            list(words),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        try:
            code = _wait(process, log)
        finally:
            process.kill()  # of no effect on one that has ended
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = [line for line in lines if not BAR.fullmatch(line)][-SHOWN_LINES:]
        raise UserError("\n".join([*last, f"the kit ended with exit code {code}; its output is in {log}"]))


def _wait(process: subprocess.Popen[bytes], log: Path) -> int:
    """Returns the exit code; meanwhile shows the newest bar in the log where there is a terminal."""
    if not sys.stderr.isatty():
        return process.wait()
    width = shutil.get_terminal_size().columns - 1
    while process.poll() is None:
        sys.stderr.write(f"\r{progress(log)[:width]:{width}}\r")
        sys.stderr.flush()
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
    sys.stderr.write(f"\r{'':{width}}\r")
    return process.returncode


def progress(log: Path) -> str:
    """Returns the newest state of a bar in a log, or nothing."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_BYTES))
        found = BAR.findall(file.read().decode("utf-8", errors="replace"))
    return found[-1] if found else ""
