"""The ledger of a run: which samples each step consumed, in a file that only grows.

After a line that names the format come records: length and CRC-32 of what follows (little-endian, 4 bytes each), a
letter, the content. `P` begins a part of the run, from a start to its end: JSON. `S` is a step: `_STEP`, the numbers of
its samples in the order of the sampler, 4 bytes each (8 in a data set of more than 2^32 records), and the exceptions:
place of a sample in the step, and a record that the sampler asked for and that is done with it.

A process that is killed leaves half a record at the end at most, which readers pass over and the next writer cuts.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from neva.errors import DataError

LEDGER = Path("ledger", "samples.bin")
"""In a run folder; in a folder of its own: exp_manager moves the files of a run folder when a run resumes."""

LEARNT, SKIPPED, NOT_FINITE, OVERFLOW = range(4)
TREATMENTS = (
    "learnt",
    "consumed and not learnt (trainer.skip_steps)",
    "consumed and not learnt (loss or gradient not finite)",
    "consumed and not learnt (the loss scale was too large)",
)
"""What a step did with its samples, by the number that stands in the file."""

_MAGIC = b"neva ledger 1\n"
_FRAME = struct.Struct("<II")
_STEP = struct.Struct("<QIIBBII")
"""Step, epoch, samples of that epoch, treatment, bytes of a number, samples, exceptions."""
_TYPES = {4: "I", 8: "Q"}


@dataclass(frozen=True)
class LedgerPart:
    """What holds for the steps from a start of the run on."""

    first_step: int
    rows: int
    """Of an epoch: samples, or packs of them."""
    samples: int
    """Of an epoch."""
    global_batch_size: int
    """Rows of a step."""
    drop_last: bool
    data: Mapping[str, Any]
    """What the order depends on, see `data_identity`."""


@dataclass(frozen=True)
class LedgerStep:
    """What a step consumed."""

    step: int
    """From 1, as the log numbers them."""
    epoch: int
    """From 0; of the first sample."""
    in_epoch: int
    """So many samples are of that epoch, the others of the next."""
    treatment: int
    """One of `TREATMENTS`."""
    numbers: Sequence[int]
    """Of the records that the samples were made of, in the order of the sampler."""
    exceptions: Sequence[tuple[int, int]] = ()
    """Place of a sample and a record that is done with it; a sample without one stands for its own record."""

    def stands_for(self) -> Iterator[tuple[int, int]]:
        """Yields epoch and number of each record that the sampler asked for."""
        places = {place for place, _ in self.exceptions}
        own = [(place, number) for place, number in enumerate(self.numbers) if place not in places]
        for place, number in [*own, *self.exceptions]:
            yield self.epoch + (place >= self.in_epoch), number


class LedgerWriter:
    """Appends steps to the ledger of a run. One process of the run has one.

    Args:
        run_dir: of the run.
        last_step: that the run resumes behind; what stands in the ledger behind it is cut, as those steps come again.

    Raises:
        DataError: the file is no ledger, or it is damaged before that step.
    """

    def __init__(self, run_dir: Path, last_step: int) -> None:
        path = run_dir / LEDGER
        path.parent.mkdir(parents=True, exist_ok=True)
        end = _end_of(path, last_step) if path.exists() and path.stat().st_size else 0
        self.file: BinaryIO = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self.file.truncate(end)
        self.file.seek(end)
        if not end:
            self.file.write(_MAGIC)

    def begin(self, part: LedgerPart) -> None:
        """Appends what holds from here on."""
        self._append(b"P" + json.dumps(asdict(part)).encode())

    def add(self, step: LedgerStep) -> None:
        """Appends a step; it is in the file when this returns, whatever becomes of the process.

        Raises:
            OSError: the disk does not take it; the file ends with the record before.
        """
        asked = [number for _, number in step.exceptions]
        width = 4 if max([*step.numbers, *asked], default=0) < 2**32 else 8
        head = _STEP.pack(
            step.step, step.epoch, step.in_epoch, step.treatment, width, len(step.numbers), len(step.exceptions)
        )  # fmt: skip
        places = array("I", [place for place, _ in step.exceptions])
        numbers = [_little(array(_TYPES[width], values)) for values in (step.numbers, asked)]
        self._append(b"S" + head + numbers[0] + _little(places) + numbers[1])

    def close(self) -> None:
        """Closes the file."""
        self.file.close()

    def _append(self, content: bytes) -> None:
        # one write without a buffer: a kill leaves the whole record, or none of it
        record, begin = _FRAME.pack(len(content), zlib.crc32(content)) + content, self.file.tell()
        try:
            if self.file.write(record) < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.file.truncate(begin)
            self.file.seek(begin)
            raise


def read_ledger(run_dir: Path) -> Iterator[LedgerPart | LedgerStep]:
    """Yields the parts and steps of a run's ledger.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = run_dir / LEDGER
    if not path.is_file():
        raise DataError(f"{run_dir} has no {LEDGER}; expected the folder of a run that neva has trained")
    for _, entry in _entries(path):
        yield entry


def _end_of(path: Path, last_step: int) -> int:
    """Returns where the last record up to a step ends."""
    end = 0
    for at, entry in _entries(path):
        step = entry.step if isinstance(entry, LedgerStep) else entry.first_step
        if step > last_step:
            break
        end = at
    return end


def _entries(path: Path) -> Iterator[tuple[int, LedgerPart | LedgerStep]]:
    """Yields the records, each with where it ends in the file; half a record at the end is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC and size >= len(_MAGIC):
            raise DataError(f"{path} is no ledger of this version of neva; move it away")
        while len(frame := file.read(_FRAME.size)) == _FRAME.size:
            begin = file.tell() - _FRAME.size
            length, checksum = _FRAME.unpack(frame)
            content = file.read(length)
            if len(content) < length:
                return
            if zlib.crc32(content) != checksum:
                if file.tell() == size:
                    return
                raise DataError(
                    f"{path} is damaged at byte {begin} of {size}: it tells nothing of the steps from there on; "
                    "move it away to let the run go on"
                )
            yield file.tell(), _entry(content)


def _entry(content: bytes) -> LedgerPart | LedgerStep:
    if content[:1] == b"P":
        return LedgerPart(**json.loads(content[1:]))
    step, epoch, in_epoch, treatment, width, count, exceptions = _STEP.unpack_from(content, 1)
    at = [1 + _STEP.size]
    for size in (count * width, exceptions * 4, exceptions * width):
        at.append(at[-1] + size)
    numbers = _read(content[at[0] : at[1]], width)
    places, asked = _read(content[at[1] : at[2]], 4), _read(content[at[2] : at[3]], width)
    return LedgerStep(step, epoch, in_epoch, treatment, numbers, tuple(zip(places, asked, strict=True)))


def _little(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _read(content: bytes, width: int) -> list[int]:
    values = array(_TYPES[width])
    values.frombytes(content)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
