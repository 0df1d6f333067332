"""Checksums of a checkpoint's files, so that a damaged one is named and never loaded."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch.distributed as dist

from neva.distributed import groups
from neva.errors import CheckpointError
from neva.formats.json import read_json

CHECKSUMS = "checksums.json"
_BLOCK_BYTES = 1 << 22


def write_checksums(folder: Path) -> None:
    """Writes size and CRC-32 of every file of a complete checkpoint. Called by every rank; each reads its share.

    CRC-32 finds what disks and interrupted copies do, at memory speed; it is no seal against tampering.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    shares = groups.gathered({name: _checksum(folder / name) for name in _share(names)})
    if dist.get_rank() == 0:
        found = {name: entry for share in shares for name, entry in share.items()}
        (folder / CHECKSUMS).write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")


def verify_checksums(folder: Path) -> None:
    """Compares every file with what was written. Called by every rank; a checkpoint of before has nothing to compare.

    Raises:
        CheckpointError: a file is missing, of another size or of other content; the same on every rank.
    """
    path = folder / CHECKSUMS
    listed: dict[str, list[int]] = read_json(path) if path.is_file() else {}
    problems = [_problem(folder / name, listed[name]) for name in _share(sorted(listed))]
    found = [problem for share in groups.gathered(problems) for problem in share if problem]
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise CheckpointError(
            f"the checkpoint {folder} is damaged: {found[0]}{more}; copy it again, or move it away and continue from "
            "an earlier one with model.resume_from_checkpoint"
        )


def incomplete(folder: Path) -> str | None:
    """Returns what is missing or cut in a checkpoint, by the sizes of its files alone; None: nothing."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return None if (folder / "metadata.json").is_file() else "it has no metadata.json"
    listed: dict[str, list[int]] = read_json(path)
    return next(filter(None, (_size_problem(folder / name, listed[name]) for name in sorted(listed))), None)


def _share(names: list[str]) -> list[str]:
    return names[dist.get_rank() :: dist.get_world_size()]


def _checksum(path: Path) -> list[int]:
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]


def _size_problem(path: Path, expected: list[int]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != expected[0]:
        return f"{path.name} has {path.stat().st_size} bytes, expected {expected[0]}"
    return None


def _problem(path: Path, expected: list[int]) -> str | None:
    if problem := _size_problem(path, expected):
        return problem
    return None if _checksum(path) == expected else f"{path.name} has another content than was written"
