"""Prompt and result files: what is asked, what is already answered, one result line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neva.constants import IMAGE_PLACEHOLDER
from neva.data.conversation import insert_image


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
        ValueError: naming the line that is no prompt, and the first image files that are missing.
    """
    if not path.is_file():
        raise ValueError(f"prompt_file: no file at {path}; expected a .json list or .jsonl lines")
    requests = [_request(number, row, image_folder, insert) for number, row in enumerate(_rows(path), 1)]
    missing = sorted({str(image) for request in requests for image in request.images if not image.is_file()})
    if missing:
        raise ValueError(f"{len(missing)} images of {path} are missing, such as {', '.join(missing[:3])}")
    return requests


def _rows(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: found a {type(rows).__name__}, expected a list of prompts")
    return rows


def _request(number: int, row: Any, image_folder: Path, insert: Literal["left", "right"] | None) -> Request:
    question = row.get("prompt", row.get("text")) if isinstance(row, dict) else None
    if not isinstance(question, str):
        raise ValueError(
            f"prompt {number}: found {row!r}, expected an object with a string 'prompt' or 'text'"
        )
    names = row.get("image") or []
    names = [names] if isinstance(names, str) else names
    if insert is not None and names and IMAGE_PLACEHOLDER not in question:
        question = insert_image(question, insert)
    if question.count(IMAGE_PLACEHOLDER) != len(names):
        raise ValueError(
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
        ValueError: when the file answers other prompts.
    """
    if not output_file.exists():
        return 0
    lines = output_file.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        output_file.write_bytes(b"".join(lines[:-1]))
        lines.pop()
    for number, (line, request) in enumerate(zip(lines, requests, strict=False), 1):
        row = json.loads(line)
        if (row["prompt"], row.get("image")) != (request.question, request.keys.get("image")):
            raise ValueError(
                f"{output_file}, line {number}, answers {row['prompt']!r}; prompt {number} is {request.question!r}. "
                "To answer other prompts, choose another output_file"
            )
    if len(lines) > len(requests):
        raise ValueError(
            f"{output_file} has {len(lines)} results for {len(requests)} prompts; choose another output_file"
        )
    return len(lines)
