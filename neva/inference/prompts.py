"""Prompt and result files: what is asked, what is already answered, one result line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neva.constants import IMAGE_PLACEHOLDER
from neva.errors import ConfigError
from neva.templates.template import insert_image


@dataclass(frozen=True)
class Request:
    """One line of a prompt file: its keys as they were read, the question with its placeholders, its images."""

    keys: dict[str, Any]
    question: str
    images: tuple[Path, ...]


def read_requests(path: Path, image_folder: Path, insert: Literal["left", "right"] | None) -> list[Request]:
    """Reads a `.json` list or `.jsonl` lines of `{"prompt" or "text": str, "image": name, list of names, or absent}`.

    Args:
        path: the prompt file.
        image_folder: where images are looked for.
        insert: puts an image placeholder before or after each prompt that has an image and no placeholder.

    Raises:
        ConfigError: naming the line that is no prompt, and the first image files that are missing.
    """
    if not path.is_file():
        raise ConfigError(f"prompt_file: no file at {path}; expected a .json list or .jsonl lines")
    requests = [_request(number, row, image_folder, insert) for number, row in enumerate(_rows(path), 1)]
    if not requests:
        raise ConfigError(f"prompt_file: {path} holds no prompt; expected a .json list or .jsonl lines")
    missing = sorted({str(image) for request in requests for image in request.images if not image.is_file()})
    if missing:
        raise ConfigError(f"{len(missing)} images of {path} are missing, such as {', '.join(missing[:3])}")
    return requests


def _rows(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        # cut at new lines alone: JSON text may contain other line separators, such as U+2028
        lines = enumerate(text.split("\n"), 1)
        return [_parsed(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    rows = _parsed(text, str(path))
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: found a {type(rows).__name__}, expected a list of prompts")
    return rows


def _parsed(text: str | bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place} is not valid JSON: {error}") from error


def _request(number: int, row: Any, image_folder: Path, insert: Literal["left", "right"] | None) -> Request:
    question = row.get("prompt", row.get("text")) if isinstance(row, dict) else None
    if not isinstance(question, str):
        raise ConfigError(
            f"prompt {number}: found {row!r}, expected an object with a string 'prompt' or 'text'"
        )
    names = row.get("image") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"prompt {number}: found image {names!r}, expected a file name or a list of them")
    if insert is not None and names and IMAGE_PLACEHOLDER not in question:
        question = insert_image(question, insert)
    if question.count(IMAGE_PLACEHOLDER) != len(names):
        raise ConfigError(
            f"prompt {number}: found {question.count(IMAGE_PLACEHOLDER)} {IMAGE_PLACEHOLDER} for {len(names)} images; "
            "write one for each, or set inference.insert_image_token=left"
        )
    return Request(row, question, tuple(image_folder / name for name in names))


def result_row(request: Request, full_text: str, text: str, model_id: str) -> dict[str, Any]:
    """Returns a result: the prompt's own keys, the prompt with its placeholders, and the answer."""
    return {
        **request.keys,
        "prompt": request.question,
        "full_text": full_text,
        "text": text,
        "model_id": model_id,
        "answer_id": 0,
        "metadata": {},
    }


def answered(output_file: Path, requests: list[Request]) -> int:
    """Returns how many prompts an existing result file answers; a half-written last line is cut off.

    Raises:
        ConfigError: when the file answers other prompts.
    """
    if not output_file.exists():
        return 0
    lines = output_file.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        output_file.write_bytes(b"".join(lines[:-1]))
        lines.pop()
    for number, (line, request) in enumerate(zip(lines, requests, strict=False), 1):
        row = _parsed(line, f"{output_file}, line {number},")
        if not isinstance(row, dict) or "prompt" not in row:
            raise ConfigError(f"{output_file}, line {number}, is no result line; choose another output_file")
        if (row["prompt"], row.get("image")) != (request.question, request.keys.get("image")):
            raise ConfigError(
                f"{output_file}, line {number}, answers {row['prompt']!r}; prompt {number} is {request.question!r}. "
                "To answer other prompts, choose another output_file"
            )
    if len(lines) > len(requests):
        raise ConfigError(
            f"{output_file} has {len(lines)} results for {len(requests)} prompts; choose another output_file"
        )
    return len(lines)
