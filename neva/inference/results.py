"""Result files: one line a prompt, in the order of the prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neva.checkpoint.checksums import CHECKSUMS
from neva.errors import ConfigError, DataError, LaunchError, naming_file
from neva.formats.atomic_write import finished_target
from neva.formats.file_lock import HeldError, locked
from neva.formats.json import json_line
from neva.formats.nemo_header import nemo_manifest
from neva.inference.prompts import Request, parse_line

if TYPE_CHECKING:
    from torch import Tensor

    from neva.inference.answer import Answer

_ASKED = ("image", "images", "video", "videos", "system")
"""Keys that decide an answer, beside the prompt."""
_SCORES = {"tokens": "text", "token_ids": "id", "logprob": "log_prob"}
"""Keys of a result line with probabilities, named as NeMo names them, and what they hold of each token."""


@dataclass(frozen=True)
class AnsweredBy:
    """The model of a result file.

    `content`: a digest of what lists its files with their checksums; None: nothing does, as with a file of NeMo 1.
    """

    model_id: str
    content: str | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What a result line says of it, beside its name."""
        return {} if self.content is None else {"model_content": self.content}


def answered_by(source: Path) -> AnsweredBy:
    """Returns what result lines say of a `.nemo`, the folder of an extracted one, or a checkpoint."""
    listed = nemo_manifest(source)
    if listed is None and (source / CHECKSUMS).is_file():
        listed = (source / CHECKSUMS).read_bytes()
    return AnsweredBy(str(source), None if listed is None else hashlib.sha256(listed).hexdigest()[:16])


def result_row(request: Request, answer: Answer | DataError, model: AnsweredBy) -> dict[str, Any]:
    """Returns a result: the prompt's own keys, the prompt, and the answer or why there is none."""
    row = {**request.keys, "prompt": request.prompt}
    row.pop("error", None)
    if isinstance(answer, DataError):
        return {**row, "text": "", "model_id": model.model_id, "error": str(answer)}
    said: dict[str, Any] = {"full_text": answer.full_text, "text": answer.text}
    if answer.tokens is not None:
        said |= {key: [getattr(token, name) for token in answer.tokens] for key, name in _SCORES.items()}
    return {**row, **said, "model_id": model.model_id, "answer_id": 0, "metadata": model.metadata}


@contextmanager
def written_by_one(path: Path) -> Iterator[None]:
    """Keeps other commands from writing the same answers until the block ends.

    Raises:
        LaunchError: another one writes them.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        with locked(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except HeldError as error:
        raise LaunchError(
            f"{path} is being written by another command ({error}): wait for its end, or choose another output_file"
        ) from error


class Results:
    """The result lines so far; a half-written last line of an existing file is cut off.

    Args:
        path: the file, which need not exist.
        requests: the prompts that it answers.
        model: that answers.

    Raises:
        ConfigError: the file answers other prompts, or holds answers of another model.
    """

    def __init__(self, path: Path, requests: Sequence[Request], model: AnsweredBy) -> None:
        self.path, self.model = path, model
        self._count = len(requests)
        self.rows: list[dict[str, Any]] = []
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
            path.write_bytes(b"".join(lines))
        for number, (line, request) in enumerate(zip(lines, requests, strict=False), 1):
            row = parse_line(line, f"{path}, line {number},")
            if not isinstance(row, dict) or not {"prompt", "text"} <= row.keys():
                raise ConfigError(f"{path}, line {number}, is no result line; choose another output_file")
            if "error" not in row:
                _refuse_other(row, request, path, number)
                _refuse_other_model(row, model, path, number)
            self.rows.append(row)
        if len(lines) > len(requests):
            raise ConfigError(
                f"{path} has {len(lines)} results for {len(requests)} prompts; choose another output_file"
            )

    def unanswered(self) -> list[int]:
        """Returns the indices of the prompts that have no answer, in order."""
        failed = [number for number, row in enumerate(self.rows) if "error" in row]
        return [*failed, *range(len(self.rows), self._count)]

    def keep(self, number: int, distributions_TV: Tensor) -> str:
        """Writes log probabilities of a prompt's answer beside the result file; returns the file's name from there."""
        import numpy as np

        file = self.path.with_suffix(".logprobs") / f"{number + 1:06d}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        with finished_target(file, overwrite=True) as temporary, temporary.open("wb") as output:
            np.save(output, distributions_TV.numpy())
        return f"{file.parent.name}/{file.name}"

    def add(self, rows: Mapping[int, dict[str, Any]]) -> None:
        """Writes rows: in the place of those that hold errors, and at the end."""
        replaced = {number: row for number, row in rows.items() if number < len(self.rows)}
        for number, row in replaced.items():
            self.rows[number] = row
        new = [row for number, row in rows.items() if number not in replaced]
        self.rows += new
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if replaced:
            with finished_target(self.path, overwrite=True) as temporary:
                temporary.write_text("".join(map(json_line, self.rows)), encoding="utf-8")
        else:
            with naming_file(self.path), self.path.open("a", encoding="utf-8") as output:
                output.writelines(map(json_line, new))


def _refuse_other(row: Mapping[str, Any], request: Request, path: Path, number: int) -> None:
    """Raises ConfigError when a result is of another prompt than the request of its number."""
    for key, asked in {"prompt": request.prompt, **{key: request.keys.get(key) for key in _ASKED}}.items():
        if row.get(key) != asked:
            raise ConfigError(
                f"{path}, line {number}, answers the {key} {row.get(key)!r:.200}; prompt {number} has {asked!r:.200}. "
                "To answer other prompts, choose another output_file"
            )


def _refuse_other_model(row: Mapping[str, Any], model: AnsweredBy, path: Path, number: int) -> None:
    """Raises ConfigError when a result is another model's, if it says whose: by content, else by where it lies."""
    before, metadata = row.get("model_id"), row.get("metadata")
    is_there = not isinstance(before, str) or Path(before).resolve() == Path(model.model_id).resolve()
    content = metadata.get("model_content") if isinstance(metadata, dict) else None
    if is_there if None in (content, model.content) else content == model.content:
        return
    if not is_there:
        raise ConfigError(
            f"{path}, line {number}, is an answer of {before}, not of {model.model_id}; choose another output_file"
        )
    raise ConfigError(
        f"{path}, line {number}, is an answer of what {model.model_id} held before it was written again; choose "
        "another output_file, or remove this one to have all prompts answered anew"
    )
