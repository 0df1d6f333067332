"""A Hugging Face folder as a lazy mapping from names to tensors, and a writer of sharded safetensors.

Both stream: about one tensor is in memory at any time.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neva.errors import CheckpointError
from neva.formats.hf_files import WEIGHT_FILES, index_of, weight_map, weights_file
from neva.formats.json import read_object, shown, write_json
from neva.formats.safetensors import TensorFile, TensorFileWriter

POINTER = b"version https://git-lfs."
SHARD_BYTES = 5 * 10**9  # transformers' own default for a long time


class FolderWeights(Mapping[str, Tensor]):
    """The weights of a folder: `*.safetensors`, else `pytorch_model*.bin`, in one file or several with an index.

    A tensor is read when it is asked for. A .bin file is mapped and loaded with `weights_only=True`: nothing in it
    is executed.

    Raises:
        CheckpointError: the folder holds no weights, or an index and its files disagree.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file_of: dict[str, Path] = self._find()
        self._current: tuple[Path, Mapping[str, Tensor]] | None = None

    def _find(self) -> dict[str, Path]:
        found = weights_file(self.folder)
        if found is None:
            raise CheckpointError(
                f"{self.folder} has neither {' nor '.join(WEIGHT_FILES)}, nor an index of either"
            )
        if found.name in WEIGHT_FILES:
            return dict.fromkeys(open_weights(found), found)
        return {tensor: self._shard(file) for tensor, file in weight_map(read_object(found), found).items()}

    def _shard(self, file: str) -> Path:
        path = self.folder / file
        if Path(file).name != file or not path.is_file():
            raise CheckpointError(
                f"{self.folder}: the index names the file {shown(file)}, which is not there"
            )
        return path

    def __getitem__(self, name: str) -> Tensor:
        path = self._file_of[name]
        if self._current is None or self._current[0] != path:
            self._current = (path, open_weights(path))
        if name not in self._current[1]:
            raise CheckpointError(f"{path} does not hold {name}, which the index places there")
        return self._current[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def open_weights(path: Path) -> Mapping[str, Tensor]:
    """Returns the tensors of one .safetensors or .bin file."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise CheckpointError(
                f"{path} is a pointer of git LFS, not the file itself: fetch it (git lfs pull)"
            )
    if path.suffix == ".safetensors":
        return TensorFile(path)
    try:
        tensors = _load(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        # in front of that torch advises to let the file run what it wants
        text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
        reason = text.splitlines()[0].partition(" Please use")[0]
        raise CheckpointError(
            f"{path} cannot be read as tensors alone ({reason:.200}); nothing in it was executed: save the model as "
            "safetensors, or fetch the file again"
        ) from error
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__}, expected tensors by name")
    others = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path}: {others[0]} is a {type(tensors[others[0]]).__name__}, expected a tensor; save the model's "
            "state_dict alone"
        )
    return tensors


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format of torch.save before 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> int:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` with their index.

    The caller provides a folder that is not yet the finished one (see `finished_target`).

    Returns:
        The number of tensors.
    """
    shards: list[tuple[Path, list[str]]] = []
    total = 0
    for names, data_bytes in _write_shards(folder, tensors, shard_bytes):
        shards.append((folder / f"part-{len(shards)}", names))
        total += data_bytes
    if len(shards) == 1:
        shards[0][0].rename(folder / WEIGHT_FILES[0])
        return len(shards[0][1])
    weight_map = {}
    for number, (path, names) in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    write_json(
        folder / index_of(WEIGHT_FILES[0]), {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
    return len(weight_map)


def _write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int
) -> Iterator[tuple[list[str], int]]:
    """Writes `part-0`, `part-1`, …; yields the tensor names and data bytes of each."""
    pending = iter(tensors)
    item = next(pending, None)
    number = 0
    while item is not None or number == 0:
        with (folder / f"part-{number}").open("wb") as stream:
            writer = TensorFileWriter(stream)
            while item is not None and writer.has_room(*item, shard_bytes):
                writer.add(*item)
                item = next(pending, None)
            writer.finish()
        yield writer.names, writer.data_bytes
        number += 1
