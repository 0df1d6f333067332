"""What lies where in a `.nemo` file or in the folder of an extracted one; members are read in place."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

from neva.errors import CheckpointError

ByteRange = tuple[Path, int, int]
"""File, offset in bytes and size in bytes."""


def members_of(path: Path) -> dict[str, ByteRange]:
    """Returns where each member lies, by name.

    Raises:
        CheckpointError: links, devices, names that lead outside, or a file that is no uncompressed tar.
    """
    return _folder_members(path) if path.is_dir() else _tar_members(path)


def read_range(byte_range: ByteRange) -> bytes:
    """Returns the bytes of a range."""
    path, start, size = byte_range
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)


def _tar_members(path: Path) -> dict[str, ByteRange]:
    members: dict[str, ByteRange] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                name = _safe_name(info.name, str(path))
                if info.isdir():
                    continue
                if not info.isreg():
                    raise CheckpointError(
                        f"{path}: member {info.name!r} is not a regular file; it is refused"
                    )
                if name in members:
                    raise CheckpointError(f"{path}: member {name!r} is there twice; it is refused")
                members[name] = (path, info.offset_data, info.size)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is not an uncompressed tar, or is cut short ({error}); expected a .nemo file"
        ) from error
    return members


def _folder_members(folder: Path) -> dict[str, ByteRange]:
    members: dict[str, ByteRange] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_symlink():
            raise CheckpointError(f"{folder}: {file.name!r} is a link; it is refused")
        if file.is_file():
            members[file.relative_to(folder).as_posix()] = (file, 0, file.stat().st_size)
    return members


def _safe_name(name: str, path: str) -> str:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise CheckpointError(f"{path}: member {name!r} leads outside the archive; it is refused")
    return pure.as_posix()
