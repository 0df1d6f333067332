"""Prompt files: what is asked."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

from neva.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from neva.errors import ConfigError
from neva.formats.json import decode_text, half_character
from neva.templates.template import insert_media

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

ImageInput: TypeAlias = Union[Path, "Image"]


@dataclass(frozen=True)
class Request:
    """What is asked: the keys of its line, the question with its placeholders, its images and videos."""

    keys: dict[str, Any]
    question: str
    images: tuple[ImageInput, ...]
    videos: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it names."""
        return (*(image for image in self.images if isinstance(image, Path)), *self.videos)

    @property
    def prompt(self) -> str:
        """The question as the line has it."""
        return str(_first(self.keys, "prompt", "text"))

    @property
    def system(self) -> str | None:
        """Replaces the template's system prompt."""
        return self.keys.get("system")

    @property
    def label(self) -> str | None:
        """The label that a SteerLM model is to answer with; None: the template's own."""
        return self.keys.get("label")


def read_requests(path: Path, image_folder: Path, insert: Literal["left", "right"] | None) -> list[Request]:
    """Reads a `.json` list or `.jsonl` lines of `{"prompt" or "text": str, "image": name, list of names, or absent}`.

    `video` names videos in the same way.

    Args:
        path: the prompt file.
        image_folder: where images and videos are looked for.
        insert: on which side of a prompt that has images or videos and no placeholder they are put; None: in front.

    Raises:
        ConfigError: naming the line that is no prompt, and the first image files that are missing.
    """
    if not path.is_file():
        raise ConfigError(f"prompt_file: no file at {path}; expected a .json list or .jsonl lines")
    requests = [_request(number, row, image_folder, insert) for number, row in enumerate(_rows(path), 1)]
    if not requests:
        raise ConfigError(f"prompt_file: {path} holds no prompt; expected a .json list or .jsonl lines")
    if count := sum(request.question != request.prompt for request in requests):
        logger.info(
            "%s prompts of %s name images and have no %s: it was put in", count, path, IMAGE_PLACEHOLDER
        )
    missing = sorted(
        {str(file) for request in requests for file in request.files if not os.path.isfile(str(file))}
    )
    if missing:
        shown = ", ".join(f"{name:.200}" for name in missing[:3])
        raise ConfigError(f"{len(missing)} images of {path} are missing, such as {shown}")
    return requests


def _rows(path: Path) -> list[Any]:
    text = decode_text(path.read_bytes(), path, ConfigError)
    if path.suffix == ".jsonl":
        # cut at new lines alone: JSON text may contain other line separators, such as U+2028
        lines = enumerate(text.split("\n"), 1)
        return [parse_line(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    rows = parse_line(text, str(path))
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: found a {type(rows).__name__}, expected a list of prompts")
    return rows


def parse_line(text: str | bytes, place: str) -> Any:
    """Returns a JSON value; ConfigError, naming `place`, when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is not valid JSON: {error}") from error


def _request(number: int, row: Any, image_folder: Path, insert: Literal["left", "right"] | None) -> Request:
    question = _first(row, "prompt", "text") if isinstance(row, dict) else None
    if not isinstance(question, str):
        raise ConfigError(
            f"prompt {number}: found {row!r:.200}, expected an object with a string 'prompt' or 'text'"
        )
    names = _names(number, row, "image")
    videos = _names(number, row, "video")
    given = {key: row.get(key) for key in ("system", "label")}
    for key, text in given.items():
        if text is not None and not isinstance(text, str):
            raise ConfigError(f"prompt {number}: found {key} {text!r:.80}, expected a string")
    for text in (question, given["system"] or "", given["label"] or "", *names, *videos):
        if half := half_character(text):
            raise ConfigError(f"prompt {number}: holds {half}, half of a character; expected whole ones")
    asked = question
    for placeholder, found in ((IMAGE_PLACEHOLDER, names), (VIDEO_PLACEHOLDER, videos)):
        if found and placeholder not in question:
            asked = insert_media(asked, len(found), insert or "left", placeholder)
        if asked.count(placeholder) != len(found) and (found or placeholder == IMAGE_PLACEHOLDER):
            raise ConfigError(
                f"prompt {number}: found {question.count(placeholder)} {placeholder} for {len(found)} "
                f"{placeholder[1:-1]}s; write one for each, or none at all to have them put in front"
            )
    return Request(
        row,
        asked,
        tuple(image_folder / name for name in names),
        tuple(image_folder / name for name in videos),
    )


def _names(number: int, row: dict[str, Any], medium: str) -> list[str]:
    names = _first(row, medium, f"{medium}s")
    names = [] if names in (None, "") else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"prompt {number}: found {medium} {names!r:.200}, expected a file name or a list of them"
        )
    return names


def request_of(text: str, images: tuple[ImageInput, ...], system: str | None = None) -> Request:
    """Returns a question that is asked from Python; without `<image>` its images stand in front of it."""
    is_placed = IMAGE_PLACEHOLDER in text or not images
    question = text if is_placed else insert_media(text, len(images), "left")
    return Request({"prompt": text, "system": system}, question, images)


def _first(row: dict[str, Any], *keys: str) -> Any:
    """Returns the first value that is not null."""
    return next((row[key] for key in keys if row.get(key) is not None), None)
