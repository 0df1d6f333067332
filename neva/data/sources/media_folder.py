"""Where images and videos lie that records name: a folder, or a tar that is read in place."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from neva.data.index import kept_arrays
from neva.data.sources.source import MediaFile
from neva.errors import DataError, SampleError
from neva.formats.progress import bytes_bar
from neva.formats.stored_file import StoredFile
from neva.formats.tar_members import TarIndex, name_table, stored_member, tar_members

MISSING = "missing image"


def has_own_place(file: str | MediaFile) -> bool:
    """Whether an image lies in no folder: in the record itself, or at an address."""
    return isinstance(file, str) and file.startswith(("data:", "http://", "https://"))


class MediaFolder:
    """A folder of media files; `folder / name` is one of them, as with `Path`.

    Args:
        path: folder or tar; None: there is none, and all media bring their own place.
        max_bytes: of what lies in a tar or table.

    Raises:
        DataError: there is neither folder nor tar, or the tar cannot be used.
    """

    def __init__(self, path: str | Path | None, max_bytes: int, key: str = "model.data.image_folder") -> None:
        self.path = None if path is None else Path(path)
        self.max_bytes = max_bytes
        self._key = key
        self._root = "" if path is None else os.path.abspath(path)
        self._tar: TarIndex | None = None
        if self.path is not None and self.path.is_file():
            self._tar = _open_tar(self.path)
        elif self.path is not None and not self.path.is_dir():
            raise DataError(f"{key}: no folder at {path}")

    def __str__(self) -> str:
        return str(self.path)

    def is_dir(self) -> bool:
        """Returns whether there is something to look into."""
        return self.path is None or self.path.exists()

    def __truediv__(self, file: str | MediaFile) -> MediaFile:
        """Returns the file of that name, which need not exist in a folder; a file is returned as it is.

        Raises:
            SampleError: the name leads outside, or what lies in a tar or table is not there or too large.
        """
        if isinstance(file, str):
            file = self._named(file)
        if isinstance(file, StoredFile) and file.size > self.max_bytes:
            raise SampleError(
                f"{file!s:.200} has {file.size >> 20:,} MiB, more than model.data.max_media_mb="
                f"{self.max_bytes >> 20}",
                "broken image",
            )
        return file

    def _named(self, name: str) -> MediaFile:
        if self.path is None:
            raise SampleError(
                f"image {name!r:.200} is a file name, and {self._key} is null; give its folder", MISSING
            )
        return self._in_folder(name) if self._tar is None else self._in_tar(name, self._tar)

    def _in_folder(self, name: str) -> Path:
        assert self.path is not None
        if not name.startswith("/") and ".." not in name:
            return self.path / name
        place = os.path.abspath(os.path.join(self._root, name))
        if os.path.commonpath([place, self._root]) != self._root:
            raise SampleError(
                f"image {name!r:.200} lies outside {self._key}={self.path}; name a folder that holds all images"
            )
        return Path(place)

    def _in_tar(self, name: str, tar: TarIndex) -> StoredFile:
        found = tar.find(posixpath.normpath(name))
        if found is None:
            raise SampleError(f"image {name!r:.200} is no member of {tar.path}", MISSING)
        return stored_member(tar.path, name, *found)


def _open_tar(path: Path) -> TarIndex:
    size = path.stat().st_size

    def build() -> object:
        with bytes_bar(size, f"index of {path.name}") as on_read:
            return name_table(tar_members(path, on_read), path)

    return TarIndex(path, kept_arrays(path, size, {}, "members", build))  # type: ignore[arg-type]
