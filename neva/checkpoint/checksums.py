"""Checksums of a checkpoint's files, so that a damaged one is named and never loaded."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from neva.checkpoint.disk import agreed, sync
from neva.checkpoint.index import ABOUT
from neva.distributed import groups
from neva.errors import CheckpointError
from neva.formats.json import read_json

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
_BLOCK_BYTES = 1 << 22


def write_checksums(folder: Path, target: Path, needed: int, group: dist.ProcessGroup | None = None) -> None:
    """Writes size and CRC-32 of every file of a complete checkpoint. Called by every rank; each reads its share.

    CRC-32 finds what disks and interrupted copies do, at memory speed; it is no seal against tampering. When this
    returns, the disk holds the files and their names.

    Args:
        folder: where the files are.
        target: the checkpoint that they will be, for messages.
        needed: its bytes.
        group: of all ranks.

    Raises:
        CheckpointError: the disk does not take them; the same on every rank.
    """
    place = (target, needed, group)
    # as rank 0 sees them: a network file system may show another node a list that is older
    (names, *_) = agreed(lambda: _files(folder), *place)
    shares = agreed(lambda: {name: _kept_checksum(folder / name) for name in _share(names)}, *place)

    def write() -> None:
        if dist.get_rank() == 0:
            found = {name: entry for share in shares for name, entry in share.items()}
            (folder / CHECKSUMS).write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
            for path in (folder / CHECKSUMS, folder):
                sync(path)

    agreed(write, *place)


def first_whole(folder: Path, earlier: Sequence[Path] = ()) -> Path:
    """Returns the first of `folder` and `earlier` whose files all hold what was written; those before it are named.

    Called by every rank. Each reads its share of the files once more than loading does, so that a checkpoint costs
    its size divided by what the disks give together, and a damaged one the same again for the one before. A
    checkpoint of before there were checksums has nothing to compare.

    Raises:
        CheckpointError: none is whole; the message is about `folder`, the same on every rank.
    """
    first = damage(folder)
    if first is None:
        return folder
    for path in earlier:
        if damage(path) is None:
            if dist.get_rank() == 0:
                tell_passed_over(folder, first, path)
            return path
    raise CheckpointError(
        f"the checkpoint {folder} is damaged: {first}; copy it again, or move it away and continue from an earlier one "
        "with model.resume_from_checkpoint"
    )


def tell_passed_over(folder: Path, problem: str | None, taken: Path) -> None:
    """Logs that a run goes on from another checkpoint than its newest."""
    logger.warning("%s is damaged (%s) and passed over; the run goes on from %s", folder, problem, taken)


def damage(folder: Path) -> str | None:
    """Returns which files of a checkpoint are missing or changed; None: none. Called by every rank; same on each."""
    try:
        listed = _listed(folder)
    except CheckpointError as error:
        problems: list[str | None] = [str(error)]
    else:
        problems = [_problem(folder / name, listed[name]) for name in _share(sorted(listed))]
    found = list(
        dict.fromkeys(problem for share in groups.gathered(problems) for problem in share if problem)
    )
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0]}{more}" if found else None


def incomplete(folder: Path) -> str | None:
    """Returns what is missing or cut in a checkpoint, by the sizes of its files alone; None: nothing."""
    try:
        listed = _listed(folder)
    except CheckpointError as error:
        return str(error)
    return next(filter(None, (_size_problem(folder / name, listed[name]) for name in sorted(listed))), None)


def _listed(folder: Path) -> dict[str, list[int]]:
    """Returns size and CRC-32 by file name, as they were written; empty for a checkpoint of before there was a list.

    Raises:
        CheckpointError: the list itself is damaged, or there is no checkpoint.
    """
    path = folder / CHECKSUMS
    if not path.is_file() and not (folder / "metadata.json").is_file():
        raise CheckpointError("it has no metadata.json")
    if not path.is_file() and (folder / ABOUT).is_file():
        raise CheckpointError(f"it has no {CHECKSUMS}")
    listed = read_json(path) if path.is_file() else {}
    if not isinstance(listed, dict) or not all(
        isinstance(entry, list) and [type(number) for number in entry] == [int, int]
        for entry in listed.values()
    ):
        raise CheckpointError(f"{CHECKSUMS} does not list a size and a CRC-32 for each file")
    return listed


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _share(names: list[str]) -> list[str]:
    return names[dist.get_rank() :: dist.get_world_size()]


def _checksum(path: Path) -> list[int]:
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]


def _kept_checksum(path: Path) -> list[int]:
    """Returns size and CRC-32 of a file that the disk holds."""
    sync(path)
    return _checksum(path)


def _size_problem(path: Path, expected: list[int]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != expected[0]:
        return f"{path.name} has {path.stat().st_size} bytes, expected {expected[0]}"
    return None


def _problem(path: Path, expected: list[int]) -> str | None:
    if problem := _size_problem(path, expected):
        return problem
    try:
        return None if _checksum(path) == expected else f"{path.name} has another content than was written"
    except OSError as error:  # a bad sector
        return f"{path.name} cannot be read ({error.strerror})"
