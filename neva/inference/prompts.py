"""Prompt files: what is asked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
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
    error: str | None = None
    """Why it cannot be asked."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it names."""
        return (*(image for image in self.images if isinstance(image, Path)), *self.videos)

    @property
    def prompt(self) -> str:
        """The question as the line has it; empty where it has none."""
        return str(_first(self.keys, "prompt", "text") or "")

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

    `video` names videos in the same way. A prompt that cannot be asked has its error, which names its line.

    Args:
        path: the prompt file.
        image_folder: where images and videos are looked for.
        insert: on which side of a prompt that has images or videos and no placeholder they are put; None: in front.

    Raises:
        ConfigError: the file cannot be read, or none of its prompts can be asked.
    """
    if not path.is_file():
        raise ConfigError(f"prompt_file: no file at {path}; expected a .json list or .jsonl lines")
    requests = [_request(place, row, image_folder, insert) for place, row in _rows(path)]
    if not requests:
        raise ConfigError(f"prompt_file: {path} holds no prompt; expected a .json list or .jsonl lines")
    errors = [request.error for request in requests if request.error is not None]
    if len(errors) == len(requests):
        raise ConfigError(f"prompt_file: no prompt of {path} can be asked; the first: {errors[0]}")
    if count := sum(request.question != request.prompt for request in requests):
        logger.info(
            "%s prompts of %s name images and have no %s: it was put in", count, path, IMAGE_PLACEHOLDER
        )
    return requests


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields where each prompt stands, and its JSON value, or why a line of a .jsonl has none."""
    text = decode_text(path.read_bytes(), path, ConfigError)
    if path.suffix.lower() == ".jsonl":
        # cut at new lines alone: JSON text may contain other line separators, such as U+2028
        lines = enumerate(text.split("\n"), 1)
        for number, line in lines:
            if line.strip():
                yield f"line {number}", _value(line, f"line {number}")
        return
    rows = parse_line(text, str(path))
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: found a {type(rows).__name__}, expected a list of prompts")
    yield from ((f"prompt {number}", row) for number, row in enumerate(rows, 1))


def _value(line: str, place: str) -> Any:
    try:
        return parse_line(line, place)
    except ConfigError as error:
        return error


def parse_line(text: str | bytes, place: str) -> Any:
    """Returns a JSON value; ConfigError, naming `place`, when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is not valid JSON: {error}") from error


def _request(place: str, row: Any, image_folder: Path, insert: Literal["left", "right"] | None) -> Request:
    """Returns a prompt, with its error where it cannot be asked."""
    try:
        if isinstance(row, ConfigError):
            raise row
        return _asked(place, row, image_folder, insert)
    except ConfigError as error:
        return Request(row if isinstance(row, dict) else {}, "", (), error=str(error))


def _asked(place: str, row: Any, image_folder: Path, insert: Literal["left", "right"] | None) -> Request:
    question = _first(row, "prompt", "text") if isinstance(row, dict) else None
    if not isinstance(question, str):
        raise ConfigError(f"{place}: found {row!r:.200}, expected an object with a string 'prompt' or 'text'")
    names = _names(place, row, "image")
    videos = _names(place, row, "video")
    given = {key: row.get(key) for key in ("system", "label")}
    for key, text in given.items():
        if text is not None and not isinstance(text, str):
            raise ConfigError(f"{place}: found {key} {text!r:.80}, expected a string")
    for text in (question, given["system"] or "", given["label"] or "", *names, *videos):
        if half := half_character(text):
            raise ConfigError(f"{place}: holds {half}, half of a character; expected whole ones")
    asked = question
    for placeholder, found in ((IMAGE_PLACEHOLDER, names), (VIDEO_PLACEHOLDER, videos)):
        if found and placeholder not in question:
            asked = insert_media(asked, len(found), insert or "left", placeholder)
        if asked.count(placeholder) != len(found) and (found or placeholder == IMAGE_PLACEHOLDER):
            raise ConfigError(
                f"{place}: found {question.count(placeholder)} {placeholder} for {len(found)} "
                f"{placeholder[1:-1]}s; write one for each, or none at all to have them put in front"
            )
    request = Request(
        row,
        asked,
        tuple(image_folder / name for name in names),
        tuple(image_folder / name for name in videos),
    )
    if missing := [file for file in request.files if not os.path.isfile(file)]:
        raise ConfigError(f"{place}: no file at {missing[0]!s:.300}")
    return request


def _names(place: str, row: dict[str, Any], medium: str) -> list[str]:
    names = _first(row, medium, f"{medium}s")
    names = [] if names in (None, "") else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{place}: found {medium} {names!r:.200}, expected a file name or a list of them")
    return names


def request_of(text: str, images: tuple[ImageInput, ...], system: str | None = None) -> Request:
    """Returns a question that is asked from Python; without `<image>` its images stand in front of it."""
    is_placed = IMAGE_PLACEHOLDER in text or not images
    question = text if is_placed else insert_media(text, len(images), "left")
    return Request({"prompt": text, "system": system}, question, images)


def _first(row: dict[str, Any], *keys: str) -> Any:
    """Returns the first value that is not null."""
    return next((row[key] for key in keys if row.get(key) is not None), None)
