"""What the kits have in common: which model, which benchmarks, where, and how a kit's process is run."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neva.errors import CheckpointError, ConfigError, UserError
from neva.formats.hf_files import read_config
from neva.formats.nemo_header import is_nemo

SHOWN_LINES = 12
"""Of a kit's log, when it fails."""


@dataclass(frozen=True)
class KitRun:
    """What a kit is to do.

    Attributes:
        model: `.nemo` or llava-hf folder; with `base_url`, the name that the server has for it.
        data: benchmarks: names that the kit knows, or files.
        folder: gets `results.json`, and the kit's own files below.
        python: interpreter of the kit's environment.
        kit_path: checkout, where the kit is no package.
        base_url: of an OpenAI-compatible server that has the model; None: the kit's process loads it.
        images: folder of the images that prompt files name.
        metric: of local files; None: by their answers.
        num_processes: that share the questions, a GPU or more each.
        max_new_tokens: of an answer.
        judge: model that reads answers, or `exact_matching`.
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
    judge: str
    is_plain: bool
    more: tuple[str, ...]


def exported(run: KitRun) -> Path:
    """Returns the llava-hf folder of a run's model, which is written first where the model is a `.nemo`.

    Raises:
        CheckpointError: the model is something else.
    """
    model = Path(run.model)
    if not model.exists():
        raise CheckpointError(f"--model: nothing at {model}; expected a .nemo file or a llava-hf folder")
    if is_nemo(model):
        return _export(model, run.folder / "hf")
    kind = read_config(model).get("model_type")
    if kind != "llava":
        raise CheckpointError(
            f"--model: {model} is a {kind!r} model; expected a .nemo, or the llava-hf folder that neva convert writes"
        )
    return model


def _export(nemo: Path, folder: Path) -> Path:
    """Exports a `.nemo` unless that was done since it was written."""
    report = folder / "parity.json"
    if not report.is_file() or report.stat().st_mtime < nemo.stat().st_mtime:
        warnings.filterwarnings(
            "ignore", module=r"megatron\..*"
        )  # that Transformer Engine is absent, as intended
        from transformers.utils.logging import disable_progress_bar

        from neva.convert.convert import convert
        from neva.convert.options import Options

        disable_progress_bar()
        convert(nemo, folder, Options(overwrite=True))
    return folder


def check_python(python: Path, kit: str, remedy: str) -> None:
    """Raises ConfigError when there is no interpreter for a kit."""
    if not os.access(python, os.X_OK):
        raise ConfigError(f"--kit-python: no Python at {python} to run {kit} with: {remedy}")


def start(words: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
    """Runs a kit's process in a folder, its output to a log.

    Raises:
        UserError: it ended with an error; the log's last lines are in the message.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(
            list(words),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        ).returncode
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]
        raise UserError("\n".join([*last, f"the kit ended with exit code {code}; its output is in {log}"]))
