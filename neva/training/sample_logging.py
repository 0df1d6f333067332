"""Answers and their images in TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from neva.data.media.image import load_image
from neva.errors import DataError
from neva.inference.prompts import Request

LONGEST_SIDE = 256
"""Pixels of an image in a logger."""


def log_samples(
    loggers: Iterable[Logger],
    pictures: Sequence[Image.Image | None],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, float],
    step: int,
) -> None:
    """Logs result rows and figures after a step.

    Args:
        loggers: of the trainer.
        pictures: of each prompt, see `picture`.
        rows: their result lines.
        figures: scores by name, maybe none.
        step: number of the step.
    """
    for log in loggers:
        if figures:
            log.log_metrics(dict(figures), step - 1)  # as Lightning numbers the step's own loss
        if isinstance(log, TensorBoardLogger):
            _to_tensorboard(log, pictures, rows, step)
        elif isinstance(log, WandbLogger):
            _to_wandb(log, pictures, rows, step)


def _to_tensorboard(
    log: TensorBoardLogger,
    pictures: Sequence[Image.Image | None],
    rows: Sequence[Mapping[str, Any]],
    step: int,
) -> None:
    for number, (shown, row) in enumerate(zip(pictures, rows, strict=True)):
        tag = f"samples/{number + 1:03d}"
        text = "\n\n".join(f"**{name}** {value}" for name, value in _cells(row).items())
        log.experiment.add_text(tag, text.replace("<image>", "&lt;image&gt;"), step)
        if shown is not None:
            log.experiment.add_image(tag, np.asarray(shown), step, dataformats="HWC")


def _to_wandb(
    log: WandbLogger, pictures: Sequence[Image.Image | None], rows: Sequence[Mapping[str, Any]], step: int
) -> None:
    log.log_table(
        "samples", list(_cells(rows[0])), [list(_cells(row).values()) for row in rows], step=step - 1
    )
    shown = [(image, row) for image, row in zip(pictures, rows, strict=True) if image is not None]
    captions = [" | ".join(_cells(row).values()) for _, row in shown]
    log.log_image("sample images", [image for image, _ in shown], step=step - 1, caption=captions)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns what is shown of a result line."""
    shown = {"prompt": row["prompt"], "answer": row.get("error", row["text"])}
    if "score" in row:
        shown["score"] = f"{row['score']:g}"
    return shown


def picture(request: Request) -> Image.Image | None:
    """Returns a prompt's images, made small, side by side; those that cannot be read are left out."""
    found: list[Image.Image] = []
    for source in request.images:
        with suppress(DataError):
            image = load_image(source).copy() if isinstance(source, Path) else source.copy()
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            found.append(image.convert("RGB"))
    if not found:
        return None
    whole = Image.new("RGB", (sum(image.width for image in found), max(image.height for image in found)))
    left = 0
    for image in found:
        whole.paste(image, (left, 0))
        left += image.width
    return whole
