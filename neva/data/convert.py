"""Records from one form into another: `.json` or `.jsonl` with files of images, or webdataset shards."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from neva.data.media.files import MediaFiles
from neva.data.sources.conversation import IMAGES
from neva.data.sources.energon_meta import Meta, ShardMeta
from neva.data.sources.media_folder import MediaFolder, has_own_place
from neva.data.sources.source import MediaFile, Record, Records
from neva.errors import DataError, SampleError
from neva.formats.atomic_write import finished_target
from neva.formats.json import json_line
from neva.formats.stored_file import StoredFile

KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")
"""A record's id that can be the key of a sample."""
ORIGINALS = "original_images"
"""Key of a record in a shard: what its images were called before."""

OnRecord = Callable[[int], object]


@dataclass(frozen=True)
class ShardSettings:
    """How shards are written."""

    samples: int
    """In a shard."""
    prefix: str
    """Of the names of the shards."""
    is_vqa: bool
    """Whether `json` holds the turns alone and a key is the record's id, as LLaVA-Pretrain's shards for energon do."""
    split: tuple[float, float, float]
    """Shares of the shards that are called train, val and test."""


def write_shards(
    records: Records,
    folder: MediaFolder,
    target: Path,
    settings: ShardSettings,
    force: bool,
    on_record: OnRecord,
) -> int:
    """Writes records and their images as webdataset shards, with the metadata that `energon prepare` writes.

    Args:
        records: to write, in their order.
        folder: of their images.
        target: a folder that does not exist yet.
        settings: of the shards.
        force: replace what is at `target`.
        on_record: is told after each record.

    Returns:
        How many shards there are.

    Raises:
        DataError: a record cannot be written.
    """
    with finished_target(target, overwrite=force, folder=True) as work:
        meta, keys = Meta(), set[str]()
        for first in range(0, len(records), settings.samples):
            path = work / f"{settings.prefix}-{first // settings.samples}.tar"
            with _shard(path) as shard:
                for index in range(first, min(first + settings.samples, len(records))):
                    shard.add(_key(records, index, settings, keys), _parts(records, index, folder, settings))
                    on_record(1)
            meta.add(ShardMeta(path.name, shard.members, path.stat().st_size))
        meta.write(work, settings.is_vqa, settings.split)
    return len(meta.shards)


class _Shard:
    """A tar that is being written."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self.members: list[tuple[str, str, int, int, int]] = []
        """Key, part, offset of the header, offset and size of the content."""

    def add(self, key: str, parts: dict[str, bytes]) -> None:
        """Adds a sample."""
        for part, content in parts.items():
            info = tarfile.TarInfo(f"{key}.{part}")
            info.size = len(content)
            header = self._archive.offset
            self._archive.addfile(info, io.BytesIO(content))
            self._archive.members.clear()  # type: ignore[attr-defined]  # one object a member
            end = self._archive.offset
            start = end - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            self.members.append((key, part, header, start, len(content)))


@contextmanager
def _shard(path: Path) -> Iterator[_Shard]:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        yield _Shard(archive)


def _key(records: Records, index: int, settings: ShardSettings, seen: set[str]) -> str:
    """Returns the record's number or, for energon's question and answer, its id, where that can be a key."""
    number = f"{index:09}"
    if not settings.is_vqa:
        return number
    record_id = _record(records, index).id
    can_be = KEY.fullmatch(record_id) is not None and record_id not in seen
    seen.add(record_id)
    return record_id if can_be else f"n{number}"


def _parts(records: Records, index: int, folder: MediaFolder, settings: ShardSettings) -> dict[str, bytes]:
    """Returns the parts of a sample: its images, and the record, which names them."""
    record = _record(records, index)
    files = _files(records, record, folder)
    if settings.is_vqa and (len(files), len(record.turns), record.system) != (1, 2, None):
        raise DataError(
            f"{records.path}, {record.place} (id {record.id!r}) has {len(files)} images, {len(record.turns)} turns"
            f"{' and a system prompt' if record.system else ''}; energon's question and answer are one image and two "
            "turns: convert with --form crude"
        )
    raw = _as_llava(record) if settings.is_vqa else raw_record(records, index, record)
    endings = [PurePosixPath(str(file)).suffix.lower().lstrip(".") or "jpg" for file in files]
    names = endings if len(files) == 1 else [f"{number}.{ending}" for number, ending in enumerate(endings)]
    raw |= {"image": names} if names else {}
    originals = [image for image in record.images if isinstance(image, str) and not has_own_place(image)]
    raw |= {ORIGINALS: originals} if originals else {}
    value = raw["conversations"] if settings.is_vqa else raw
    contents = [_content(records, record, file) for file in files]
    return dict(zip(names, contents, strict=True)) | {"json": json_line(value).strip().encode()}


def write_json(records: Records, folder: MediaFolder, target: Path, force: bool, on_record: OnRecord) -> None:
    """Writes records as a `.json` list or `.jsonl` lines, and images that are no files of a folder into `NAME_images`.

    Where there are no such images, a folder of that name is left alone: it may be that of the records' images.

    Args:
        records: to write, in their order.
        folder: of their images.
        target: the file.
        force: replace what is at `target`.
        on_record: is told after each record.

    Raises:
        DataError: a record cannot be written.
    """
    images = target.with_name(f"{target.stem}_images")
    before, between, after = ("", "\n", "\n") if target.suffix == ".jsonl" else ("[", ",\n", "]\n")
    with ExitStack() as targets:
        new = targets.enter_context(finished_target(target, overwrite=force))
        out = cache(lambda: targets.enter_context(finished_target(images, overwrite=force, folder=True)))
        file = targets.enter_context(new.open("w", encoding="utf-8"))
        for index in range(len(records)):
            line = json_line(_as_json(records, index, folder, out))
            file.write((between if index else before) + line.rstrip("\n"))
            on_record(1)
        file.write(after)


def _as_json(records: Records, index: int, folder: MediaFolder, out: Callable[[], Path]) -> dict[str, Any]:
    record = _record(records, index)
    raw = raw_record(records, index, record)
    originals = raw.pop(ORIGINALS, None)
    names: list[str] = []
    for number, (image, file) in enumerate(zip(record.images, _files(records, record, folder), strict=True)):
        if not isinstance(file, StoredFile) or has_own_place(image):
            names.append(str(image))
            continue
        name = (
            originals[number]
            if isinstance(originals, list) and len(originals) == len(record.images)
            else file.name
        )
        content = _content(records, record, file)
        names.append(_written(out(), _safe(name, file.name), content, f"{index:09}.{number}"))
    return {**raw, **({"image": names[0] if len(names) == 1 else names} if names else {})}


def _written(folder: Path, name: str, content: bytes, otherwise: str) -> str:
    """Writes an image, where another one has its name under one that begins with `otherwise`; returns its name."""
    place = folder / name
    if place.is_file() and place.read_bytes() != content:
        place = place.with_name(f"{otherwise}.{place.name}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place.relative_to(folder).as_posix()


def _safe(name: Any, otherwise: str) -> str:
    """Returns a name that stays inside a folder."""
    parts = PurePosixPath(name if isinstance(name, str) else otherwise)
    return otherwise if parts.is_absolute() or ".." in parts.parts else parts.as_posix()


def raw_record(records: Records, index: int, record: Record) -> dict[str, Any]:
    """Returns a record as its source has it, without its images, or as LLaVA would write it."""
    source = getattr(records, "raw", None)
    raw = source(index) if source is not None else None
    if isinstance(raw, dict):
        return {"id": record.id} | {
            key: value for key, value in raw.items() if key not in IMAGES and value is not None
        }
    return _as_llava(record)


def _as_llava(record: Record) -> dict[str, Any]:
    turns = [
        {"from": turn.role, "value": turn.text} | ({"label": turn.label} if turn.label else {})
        for turn in record.turns
    ]
    return {"id": record.id, **({"system": record.system} if record.system else {}), "conversations": turns}


def _record(records: Records, index: int) -> Record:
    try:
        return records[index]
    except SampleError as error:
        raise DataError(
            f"{records.path}, {error.place or f'record {index}'}: {error}; mend or remove it"
        ) from error


def _files(records: Records, record: Record, folder: MediaFolder) -> list[MediaFile]:
    try:
        return [MediaFiles(folder, fetched=None).image(image) for image in record.images]
    except SampleError as error:
        raise DataError(f"{records.path}, {record.place} (id {record.id!r}): {error}") from error


def _content(records: Records, record: Record, file: MediaFile) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{records.path}, {record.place} (id {record.id!r}): image file {file} cannot be read ({error.strerror})"
        ) from error
