"""An uncompressed tar whose members are written as they come, with their sha256."""

from __future__ import annotations

import hashlib
import io
import tarfile
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, BinaryIO


class TarWriter:
    """An uncompressed tar with fixed times and owners, whose members may be written before their size is known."""

    def __init__(self, stream: BinaryIO, path: Path, hasher: Executor) -> None:
        self._stream, self._path, self._hasher = stream, path, hasher
        self._header_at = 0
        self._digests: dict[str, tuple[Future[str], int]] = {}

    def digests(self) -> dict[str, dict[str, Any]]:
        """Returns sha256 and size of the members so far.

        A member is read again in the background, while the next is written.
        """
        return {
            name: {"sha256": future.result(), "bytes": size} for name, (future, size) in self._digests.items()
        }

    def begin(self) -> BinaryIO:
        """Returns the stream, standing where the next member's content goes."""
        self._header_at = self._stream.tell()
        self._stream.seek(tarfile.BLOCKSIZE, io.SEEK_CUR)
        return self._stream

    def end(self, name: str, size: int) -> None:
        """Closes the member begun before, with `size` bytes of content."""
        content_at = self._header_at + tarfile.BLOCKSIZE
        info = tarfile.TarInfo(name)
        info.size = size
        header = info.tobuf(tarfile.GNU_FORMAT)
        if len(header) != tarfile.BLOCKSIZE:
            raise ValueError(f"{name}: a member's name may have 100 characters at most")
        self._stream.flush()
        self._digests[name] = self._hasher.submit(sha256_of, self._path, content_at, size), size
        self._stream.seek(self._header_at)
        self._stream.write(header)
        self._stream.seek(content_at + size)
        self._stream.write(bytes(-size % tarfile.BLOCKSIZE))

    def add(self, name: str, content: bytes) -> None:
        """Adds a small member."""
        self.begin().write(content)
        self.end(name, len(content))

    def finish(self) -> None:
        """Writes the end of the archive."""
        self._stream.write(bytes(2 * tarfile.BLOCKSIZE))


def sha256_of(path: Path, start: int, size: int) -> str:
    """Returns the sha256 of `size` bytes of a file, from byte `start` on."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(start)
        while size > 0 and (block := stream.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()
