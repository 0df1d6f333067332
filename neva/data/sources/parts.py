"""Samples of named parts, as webdataset shards hold them: which part says what.

A part is a file (`0001.jpg`, `0001.json`); its name is what follows the first dot of the sample's key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from neva.constants import IMAGE_PLACEHOLDER
from neva.data.sources.conversation import parse_record
from neva.data.sources.source import Record
from neva.errors import SampleError
from neva.formats.stored_file import StoredFile

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jfif", "avif", "heic")
TEXT_ENDINGS = ("json", "txt", "text", "caption", "cls")
FIELD = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")

Parts = Mapping[str, StoredFile]


@dataclass(frozen=True)
class SampleForm:
    """What the parts of a sample mean.

    `kind` null: a conversation in `json`, else a question there and the answer in `txt`, else a caption in `txt`.
    Otherwise the name of an energon sample type, without `Sample`, and which parts its fields are.
    """

    kind: str | None = None
    fields: Mapping[str, str] | None = None


def is_image(part: str) -> bool:
    """Returns whether a part is an image, by its name."""
    return part.rpartition(".")[2].lower() in IMAGE_ENDINGS


def is_text(part: str) -> bool:
    """Returns whether a part is text that a record is made of, by its name."""
    return part.rpartition(".")[2].lower() in TEXT_ENDINGS


def record_of(key: str, parts: Parts, form: SampleForm, place: str) -> tuple[Record, Any]:
    """Returns the record that a sample is, and the JSON value from which it was made.

    Raises:
        SampleError: the parts do not make a record.
    """
    try:
        raw = _raw(parts, form)
        listed = raw.pop("parts", None) or raw.pop("image", None) or raw.pop("images", None)
        raw = {"id": key, **raw, "image": [], "images": None}
        record = parse_record(raw, key, place)  # its images are those that its turns name
        return replace(record, images=_images(listed or record.images, parts)), raw
    except SampleError as error:
        error.record_id, error.place = error.record_id or key, place
        raise


def _raw(parts: Parts, form: SampleForm) -> dict[str, Any]:
    if form.kind is None or form.kind == "Crude":
        return _by_names(parts)
    maker = ENERGON.get(form.kind)
    assert maker is not None and form.fields is not None
    return maker({name: field(parts, path) for name, path in form.fields.items()})


def _by_names(parts: Parts) -> dict[str, Any]:
    """Returns the raw record of a sample whose parts nobody explains."""
    value = _content(parts, "json") if "json" in parts else None
    if isinstance(value, list):
        return {"conversations": value}
    if isinstance(value, Mapping) and ("conversations" in value or "messages" in value):
        return dict(value)
    text = next((name for name in ("txt", "text", "caption") if name in parts), None)
    if isinstance(value, Mapping) and isinstance(question := value.get("question"), str):
        return _asked(
            question, value.get("answer") if text is None else _content(parts, text), _has_image(parts)
        )
    if text is not None:
        return _asked("", _content(parts, text), _has_image(parts))
    raise SampleError(
        f"found the parts {', '.join(parts)}; expected a json with conversations, or a txt with the answer or caption"
    )


def _has_image(parts: Parts) -> bool:
    return any(map(is_image, parts))


def _asked(question: Any, answer: Any, has_image: bool = True) -> dict[str, Any]:
    """Returns a conversation of one question, with the image in front unless the question places it."""
    if isinstance(question, str) and has_image and IMAGE_PLACEHOLDER not in question:
        question = f"{IMAGE_PLACEHOLDER}\n{question}" if question else IMAGE_PLACEHOLDER
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def _vqa(fields: Mapping[str, Any]) -> dict[str, Any]:
    answers, weights = fields.get("answers"), fields.get("answer_weights")
    if isinstance(answers, list) and answers:
        likeliest = max(range(len(answers)), key=weights.__getitem__) if isinstance(weights, list) else 0
        answers = answers[likeliest]
    return {**_asked(fields.get("context"), answers), "parts": [fields.get("image")]}


def _captioning(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**_asked("", fields.get("caption")), "parts": [fields.get("image")]}


def _similarity(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Texts that are turns are a conversation; others are read with the images that are matched to them in front."""
    texts, images = _list(fields.get("texts")), _list(fields.get("images"))
    if all(isinstance(text, Mapping) for text in texts):
        return {"conversations": texts, "parts": images}
    matched = _list(fields.get("matched_text_indices")) or list(range(len(images)))
    sequence: list[Any] = []
    for number, text in enumerate(texts):
        sequence += [image for image, place in zip(images, matched, strict=False) if place == number]
        sequence.append(text)
    return _interleaved({"sequence": sequence})


def _interleaved(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns texts as answers to the images before each; texts without an image between them are one."""
    turns: list[dict[str, str]] = []
    images = []
    for item in _list(fields.get("sequence")):
        item = item.get("image", item.get("text")) if isinstance(item, Mapping) else item
        if isinstance(item, StoredFile) or (isinstance(item, str) and is_image(item)):
            images.append(item)
            if not turns or turns[-1]["from"] == "gpt":
                turns.append({"from": "human", "value": ""})
            turns[-1]["value"] += IMAGE_PLACEHOLDER
        elif turns and turns[-1]["from"] == "gpt":
            turns[-1]["value"] += str(item)
        else:
            turns += [{"from": "human", "value": ""}] * (not turns) + [{"from": "gpt", "value": str(item)}]
    return {"conversations": turns, "parts": images}


ENERGON = {
    "VQA": _vqa,
    "Captioning": _captioning,
    "SimilarityInterleaved": _similarity,
    "Interleaved": _interleaved,
}
"""What is made of the fields of a sample type."""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _images(named: Any, parts: Parts) -> list[StoredFile]:
    """Returns the images of a sample in the order in which its record names them, all where it names none."""
    present = {name: part for name, part in parts.items() if is_image(name)}
    if not named:
        return list(present.values())
    found = [_named(item, parts) for item in _list(named)]
    if None not in found:
        return [file for file in found if file is not None]
    if len(found) == len(present):
        return list(present.values())
    raise SampleError(
        f"the record names the images {_list(named)!r:.200}; its sample has {', '.join(present) or 'none'}",
        "missing image",
    )


def _named(item: Any, parts: Parts) -> StoredFile | None:
    if isinstance(item, StoredFile):
        return item
    if not isinstance(item, str):
        raise SampleError(f"image must be a part of the sample or a list of them, found {item!r:.80}")
    last = PurePosixPath(item).name
    return parts.get(item) or next((part for part in parts.values() if part.name == last), None)


def field(parts: Parts, path: str) -> Any:
    """Returns what a field map's entry means: `jpg`, `json[0][value]`, or several with commas, the first that exists.

    The form is that of megatron-energon's `dataset.yaml`.

    Raises:
        SampleError: none of them exists.
    """
    for option in path.split(","):
        match = FIELD.fullmatch(option.strip())
        if match is None or match[1] not in parts:
            continue
        try:
            value: Any = _content(parts, match[1])
            for step in re.findall(r"\[([^\[\]]+)\]", match[2]):
                value = value[int(step)] if isinstance(value, Sequence) else value[step]
            return value
        except (KeyError, IndexError, TypeError, ValueError):
            continue
    raise SampleError(f"the field map asks for {path!r}, which the sample of {', '.join(parts)} has not")


def _content(parts: Parts, name: str) -> Any:
    """Returns an image as its file, `json` parsed, and other parts as text."""
    if not is_text(name):
        return parts[name]
    try:
        content = parts[name].read_bytes()
        return json.loads(content) if name.rpartition(".")[2] == "json" else content.decode("utf-8-sig")
    except (ValueError, RecursionError) as error:
        raise SampleError(f"{parts[name]} cannot be read as {name}: {error}") from error
