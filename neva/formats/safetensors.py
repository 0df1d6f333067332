"""Safetensors files, one tensor at a time: read at an offset inside another file, written without knowing the end.

The `safetensors` package maps whole files and writes whole dictionaries. Here a file may lie inside an
uncompressed tar, a read takes one tensor's bytes, and a writer holds one tensor: it reserves the header's
place and fills it in at the end.
Format: https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header padded with spaces, and data
without holes.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from neva.errors import CheckpointError
from neva.formats.json import parse_object, shown

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER_BYTES = 65536  # room for about 400 tensors; a writer that runs out of it asks for the next file
ENTRY_BYTES = 200  # what an entry takes besides its name: dtype, shape and offsets as digits
LARGEST_HEADER = 100_000_000  # the limit of the reference implementation


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file of `size` bytes that starts at byte `start` of `path`, read on demand."""

    def __init__(self, path: Path, start: int = 0, size: int | None = None) -> None:
        self.path = path
        size = path.stat().st_size - start if size is None else size
        with path.open("rb") as file:
            file.seek(start)
            length = int.from_bytes(file.read(8), "little")
            if length > min(LARGEST_HEADER, size - 8):
                raise CheckpointError(
                    f"{path} is not a complete safetensors file: its header claims {length} bytes"
                )
            header = parse_object(file.read(length), f"the header of {path}")
        header.pop("__metadata__", None)
        self._data_start = start + 8 + length
        self._entries: dict[str, Any] = header
        end = 8 + length + _check_entries(header, path)
        if end != size:
            what = "is cut short" if end > size else "goes on behind them"
            raise CheckpointError(f"{path}: its tensors end at byte {end}, but it has {size} and {what}")

    def __getitem__(self, name: str) -> Tensor:
        wanted = self.empty(name)
        begin, end = self._entries[name]["data_offsets"]
        if wanted.numel() == 0:
            return torch.empty(wanted.shape, dtype=wanted.dtype)
        # A mapping of this tensor alone: no copy, and its pages go when the tensor goes. Private, so that writing into
        # the tensor leaves the file as it is.
        start = self._data_start + begin
        skipped = start % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            mapped = mmap.mmap(
                file.fileno(), wanted.nbytes + skipped, access=mmap.ACCESS_COPY, offset=start - skipped
            )
        data = torch.frombuffer(mapped, dtype=torch.uint8, offset=skipped)
        if start % wanted.element_size():
            data = data.clone()  # a dtype's view needs its alignment
        return data.view(wanted.dtype).view(wanted.shape)

    def empty(self, name: str, device: str = "meta") -> Tensor:
        """Returns a tensor of `name`'s shape and dtype without its values; on the meta device it takes no memory."""
        entry = self._entries[name]
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"{self.path}: {name} has dtype {entry['dtype']}, expected one of {sorted(DTYPES)}"
            )
        return torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device=device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _check_entries(header: Mapping[str, Any], path: Path) -> int:
    """Returns the bytes of all tensors of a header.

    Raises:
        CheckpointError: it does not say of each its dtype, shape and place, or the places have gaps or overlap.
    """
    end = 0
    for name, entry in header.items():
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("dtype"), str)
            and _are_sizes(entry.get("shape"))
            and _are_sizes(entry.get("data_offsets"))
            and len(entry["data_offsets"]) == 2
        ):
            raise CheckpointError(
                f"the header of {path} says {shown(entry)} of {name}, expected dtype, shape and data_offsets; fetch "
                "the file again"
            )
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if first != end or last < first:
            raise CheckpointError(
                f"the header of {path} puts {name} at bytes {first} to {last}, expected {end} and on; fetch the file "
                "again"
            )
        dtype = DTYPES.get(entry["dtype"])  # another one is refused where its tensor is asked for
        if dtype is not None and last - first != (needed := math.prod(entry["shape"]) * dtype.itemsize):
            raise CheckpointError(f"{path}: {name} takes {last - first} bytes, its shape needs {needed}")
        end = last
    return end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


class TensorFileWriter:
    """Writes one safetensors file into a seekable binary stream, from its current position on."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._start = stream.tell()
        self._entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._header_room = HEADER_BYTES - 8 - ENTRY_BYTES
        self.data_bytes = 0
        stream.seek(HEADER_BYTES, os.SEEK_CUR)

    @property
    def names(self) -> list[str]:
        return [name for name in self._entries if name != "__metadata__"]

    def has_room(self, name: str, tensor: Tensor, limit_bytes: int) -> bool:
        """Whether another tensor fits: into the header, and into `limit_bytes` of data (a first one always does)."""
        fits = self.data_bytes == 0 or self.data_bytes + tensor.nbytes <= limit_bytes
        return fits and self._header_room >= len(name) + ENTRY_BYTES

    def add(self, name: str, tensor: Tensor) -> None:
        """Appends one tensor."""
        begin, self.data_bytes = self.data_bytes, self.data_bytes + tensor.nbytes
        self._entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, self.data_bytes],
        }
        self._header_room -= len(name) + ENTRY_BYTES
        self._stream.write(memoryview(_bytes_of(tensor.detach().cpu().contiguous())))

    def finish(self) -> int:
        """Fills the header in and returns the file's size in bytes; the stream stands at its end."""
        header = json.dumps(self._entries, separators=(",", ":")).encode().ljust(HEADER_BYTES - 8)
        self._stream.seek(self._start)
        self._stream.write(len(header).to_bytes(8, "little") + header)
        self._stream.seek(self.data_bytes, os.SEEK_CUR)
        return HEADER_BYTES + self.data_bytes


def _bytes_of(tensor: Tensor) -> Any:
    """Returns the memory of a contiguous CPU tensor as a numpy array of bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
