"""Which checkpoints lie in a folder, what they say of themselves, and which of them a newer one supersedes.

The folder is the index: each checkpoint is a folder of its own that says its step and its logged values, so there is no
list that could disagree with what is there. The name `…-last` is a link to the newest.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neva.formats.json import read_json

ABOUT = "about.json"
"""File of a checkpoint with its step and its logged values."""

LAST = "-last"
UNFINISHED = ".writing"
"""Folder beside the checkpoints for those that are not complete; NeMo's search for checkpoints passes over its name."""

_STEP = re.compile(r"-step=(\d+)-")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that looks like a checkpoint; nothing says that it is whole."""

    path: Path
    step: int
    """-1: it does not say."""
    is_ranked: bool
    """Whether it competes for a place among the best; else it stays as long as it is the newest."""
    score: float | None
    """What it is ranked by; None: it does not say, and nothing removes it."""


def about(step: int, logged: Mapping[str, float], is_ranked: bool) -> str:
    """Returns what a checkpoint says of itself, as JSON; a value that is no number is null."""
    finite = {name: value if math.isfinite(value) else None for name, value in sorted(logged.items())}
    saved = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    told = {
        "step": step,
        "is_ranked": is_ranked,
        "logged": finite,
        "saved": saved,
        "host": socket.gethostname(),
    }
    return json.dumps(told, indent=1)


def checkpoints(folder: Path, monitor: str = "step", mode: str = "max") -> list[Checkpoint]:
    """Returns the checkpoints of a folder, newest step first; links to them are passed over.

    The order is that of the steps, so a clock that jumps changes nothing. Those of before there was `ABOUT` say in
    their names what they know; a folder called `-last` is one of them.
    """
    folders = (path for path in folder.glob("*") if path.is_dir() and not path.is_symlink())
    found = [_read(path, monitor, mode) for path in folders if not path.name.startswith(".")]
    whole = [one for one in found if one.step >= 0 or one.path.match(f"*{LAST}")]
    return sorted(whole, key=lambda one: (one.step, one.path.name), reverse=True)


def superseded(newest: Path, monitor: str, mode: str, top_k: int, keeps_newest: bool) -> list[Path]:
    """Returns the checkpoints of a folder that need not be kept now that there is `newest`, which is always kept.

    Kept are the best `top_k` of the others (-1: all), so that there is one to go back to; where the newest is not kept
    for being the newest, it counts among the best.
    """
    others = [one for one in checkpoints(newest.parent, monitor, mode) if one.path != newest]
    ranked = sorted(filter(_has_rank, others), key=lambda one: _order(one, mode), reverse=True)
    kept = ranked if top_k < 0 else ranked[: top_k if keeps_newest else max(0, top_k - 1)]
    return [one.path for one in others if one not in kept and (_has_rank(one) or not one.is_ranked)]


def is_among_best(score: float, found: list[Checkpoint], mode: str, top_k: int) -> bool:
    """Whether a checkpoint with that score would be one of the best `top_k`."""
    if top_k < 0 or not math.isfinite(score):
        return top_k < 0
    mine = score if mode == "max" else -score
    return sum(_order(one, mode)[0] > mine for one in filter(_has_rank, found)) < top_k


def link_last(path: Path) -> None:
    """Has the link `…-last` name `path` and no other; where the file system has no links there is none.

    A folder that is called so itself needs none.
    """
    if path.name.endswith(LAST):
        return
    target = path.with_name(path.name + LAST)
    if not target.is_dir() or target.is_symlink():
        temporary = path.with_name(f".{target.name}")
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(path.name)
            os.replace(temporary, target)
    unlink_last(path.parent, target)


def unlink_last(folder: Path, kept: Path | None = None) -> None:
    """Removes the links `…-last` of a folder, but for `kept`."""
    for link in folder.glob(f"*{LAST}"):
        if link.is_symlink() and link != kept:
            link.unlink(missing_ok=True)


def ranked_value(name: str, monitor: str) -> float | None:
    """Returns the monitored value in the name of a checkpoint, `…-step=12-…`; None where there is none."""
    found = re.findall(rf"(?:^|-){re.escape(monitor)}=(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name)
    return float(found[-1]) if found else None


def _read(path: Path, monitor: str, mode: str) -> Checkpoint:
    was_last = path.name.endswith(LAST)
    try:
        told = read_json(path / ABOUT)
        step, logged, is_ranked = int(told["step"]), dict(told["logged"]), bool(told["is_ranked"])
        worst = -math.inf if mode == "max" else math.inf
        score = (
            None if monitor not in logged else worst if logged[monitor] is None else float(logged[monitor])
        )
    except (OSError, KeyError, TypeError, ValueError):
        found = _STEP.search(path.name + "-")
        step, is_ranked = int(found[1]) if found else -1, True
        score = ranked_value(path.name, monitor)
    return Checkpoint(path, step, is_ranked and not was_last, score)


def _has_rank(one: Checkpoint) -> bool:
    return one.is_ranked and one.score is not None


def _order(one: Checkpoint, mode: str) -> tuple[float, int]:
    """Returns what is larger for a better checkpoint, and of equal ones for the newer."""
    assert one.score is not None
    return (one.score if mode == "max" else -one.score, one.step)
