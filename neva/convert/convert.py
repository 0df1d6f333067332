"""Detects the source format and converts it to the requested target.

A new source is a module under `readers` and a line in `detect`, a new target a module under `writers` and a line in
`targets`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from neva.convert.detect import detect
from neva.convert.lazy_model import LazyModel, merged
from neva.convert.options import Options
from neva.convert.stored_tokenizer import stored_tokenizer
from neva.convert.targets import target_form
from neva.errors import ConfigError, UserError, naming
from neva.formats.atomic_write import check_target
from neva.formats.hf_files import PARITY_REPORT
from neva.formats.json import read_json
from neva.formats.nemo_header import is_nemo

logger = logging.getLogger(__name__)


def convert(source: Path, target: Path, options: Options) -> str:
    """Converts `source` to `target` and returns one sentence about what was done.

    A `.nemo` becomes a Hugging Face folder, or another `.nemo` that holds every part; a folder becomes a `.nemo`, or,
    where it is a text model and `tower_path` is given, a LLaVA model with a fresh projector. Adapters go between a
    `.nemo` and a folder of peft, or are merged into the model that they belong to.

    Raises:
        UserError: what was found, and what was expected.
    """
    check_target(target, options.overwrite)
    check_replaced(target, (source, options.llm_path, options.tower_path, options.tokenizer_path))
    kind = detect(source, adds_tower=options.tower_path is not None)
    logger.info("%s is a %s", source, kind.words)
    form = target_form(kind, target, options)
    form.refuse_others(options)
    if not kind.has_tower:
        _refuse_same_form(source, target)
    with naming(source):
        model = _function("readers", kind.reader, "read")(source, options)
        if kind.has_tower and options.tokenizer_path is not None:
            model = replace(model, tokenizer=stored_tokenizer(options.tokenizer_path))
        if options.merge:
            model = merged(model)
        _function("writers", form.writer, "write")(model, target, options)
    return f"{kind.words} {source} -> {form.words.format(target)}"


def open_source(folder: Path) -> LazyModel:
    """Opens the model with a tower that a folder of transformers' layout holds.

    Raises:
        UserError: it holds another one.
    """
    kind = detect(folder)
    if kind.reader not in ("llava_hf", "idefics2"):
        raise ConfigError(
            f"{folder} is a {kind.words}; expected a folder that transformers loads with its tower, llava-hf or an "
            "Idefics2: convert it to one"
        )
    with naming(folder):
        model: LazyModel = _function("readers", kind.reader, "read")(folder, Options())
        return model


def check_replaced(target: Path, sources: Iterable[Path | None]) -> None:
    """Raises UserError when replacing `target` would remove what is read, or what no conversion has written."""
    if not target.exists():
        return
    for source in sources:
        if source is not None and target.resolve() in (source.resolve(), *source.resolve().parents):
            raise UserError(f"{target} is or holds {source}, which is read: choose another target")
    if not target.is_dir():
        return
    report = target / PARITY_REPORT
    written = read_json(report).get("files", []) if report.is_file() else []
    found = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
    if foreign := sorted(found.difference(written)):
        raise UserError(
            f"{target} holds {len(foreign)} files that its {PARITY_REPORT} does not list as written by a conversion, "
            f"such as {foreign[0]}: move them away, or choose another target"
        )


def _refuse_same_form(source: Path, target: Path) -> None:
    is_file = target.suffix == ".nemo"
    if is_nemo(source) == is_file:
        raise ConfigError(
            f"{source} and {target} are both {'.nemo files' if is_file else 'Hugging Face folders'}; a language model "
            "goes from one to the other"
        )


def _function(package: str, module: str, name: str) -> Callable[..., Any]:
    """Returns a reader or writer; a conversion imports its own two alone."""
    return getattr(import_module(f"neva.convert.{package}.{module}"), name)
