"""Members of an uncompressed tar, read in place and found by name; none is unpacked."""

from __future__ import annotations

import hashlib
import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from neva.errors import DataError
from neva.formats.archive import read_range
from neva.formats.stored_file import StoredFile

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tar_members(
    path: Path, on_read: Callable[[int], object] = lambda _: None
) -> Iterator[tuple[str, int, int]]:
    """Yields name, offset and size in bytes of each file in a tar, in their order.

    Args:
        path: the tar.
        on_read: is told how many bytes of the tar have been passed.

    Raises:
        DataError: it is no uncompressed tar, is cut short, or has a link, a device, a sparse file, or a name that leads
            outside.
    """
    end, passed = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # would hold one object a member
                on_read(archive.offset - passed)
                passed = archive.offset
                if not info.isdir():
                    yield _checked(info, path, end)
            _refuse_rest(path, archive.offset)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is not an uncompressed tar, or is cut short ({error}); unpack a compressed one (gunzip), fetch a "
            "torn one again"
        ) from error


def _refuse_rest(path: Path, end: int) -> None:
    """Raises DataError unless zeros alone follow the last member: Python's reader takes a broken header for the end."""
    with path.open("rb") as file:
        file.seek(end)
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise DataError(
                    f"{path} goes on behind its end at byte {end:,}: its next header is damaged, or several tars were "
                    "joined; fetch it again, or keep them apart (a folder of tars is read too)"
                )


def _checked(info: tarfile.TarInfo, path: Path, end: int) -> tuple[str, int, int]:
    pure = PurePosixPath(info.name)
    if pure.is_absolute() or ".." in pure.parts:
        raise DataError(
            f"{path}: member {info.name!r:.200} leads outside the archive; it is refused: pack it again"
        )
    if not info.isreg() or info.issparse():
        raise DataError(
            f"{path}: member {info.name!r:.200} is a link, a device or sparse; it is refused: pack it as a file"
        )
    if info.offset_data + info.size > end:
        raise DataError(f"{path} is cut short in the member {info.name!r:.200}; fetch it again")
    # bytes that are no UTF-8, as of names in GB18030, are spelt out
    name = pure.as_posix().encode(errors="surrogateescape").decode(errors="backslashreplace")
    return name, info.offset_data, info.size


def name_table(members: Iterator[tuple[str, int, int]], path: Path) -> dict[str, NDArray[Any]]:
    """Returns arrays in which `TarIndex` finds a member by name; DataError for a name that is there twice."""
    import numpy as np

    names, ends, starts, sizes, hashes = bytearray(), array("q"), array("q"), array("q"), array("Q")
    for name, start, size in members:
        names += name.encode()
        ends.append(len(names))
        starts.append(start)
        sizes.append(size)
        hashes.append(_hash(name.encode()))
    columns = {"ends": ends, "starts": starts, "sizes": sizes, "hashes": hashes}
    table = {key: np.frombuffer(column, dtype=column.typecode) for key, column in columns.items()}
    order = np.argsort(table["hashes"], kind="stable")
    table |= {
        "names": np.frombuffer(bytes(names), dtype=np.uint8),
        "order": order,
        "hashes": table["hashes"][order],
    }
    _refuse_twice(table, path)
    return table


def _refuse_twice(table: Mapping[str, NDArray[Any]], path: Path) -> None:
    import numpy as np

    index, hashes = TarIndex(path, table), table["hashes"]
    for place in np.flatnonzero(hashes[1:] == hashes[:-1]):
        first, second = (index.name(int(table["order"][at])) for at in (place, place + 1))
        if first == second:
            raise DataError(f"{path}: member {first!r:.200} is there twice; pack it once")


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


class TarIndex:
    """Finds the members of a tar by name in arrays that processes share."""

    def __init__(self, path: Path, table: Mapping[str, NDArray[Any]]) -> None:
        self.path, self._table = path, table

    def __len__(self) -> int:
        return len(self._table["starts"])

    def name(self, number: int) -> str:
        """Returns the name of a member by its number in the archive."""
        ends = self._table["ends"]
        return self._table["names"][ends[number - 1] if number else 0 : ends[number]].tobytes().decode()

    def find(self, name: str) -> tuple[int, int] | None:
        """Returns offset and size in bytes of the member of that name, None where there is none."""
        import numpy as np

        key, hashes = np.uint64(_hash(name.encode())), self._table["hashes"]
        for place in range(int(np.searchsorted(hashes, key)), len(hashes)):
            number = int(self._table["order"][place])
            if hashes[place] != key:
                break
            if self.name(number) == name:
                return int(self._table["starts"][number]), int(self._table["sizes"][number])
        return None


def stored_member(path: Path, name: str, start: int, size: int) -> StoredFile:
    """Returns a member of a tar as a file."""
    return StoredFile(f"{path}/{name}", partial(read_range, (path, start, size)), size)
