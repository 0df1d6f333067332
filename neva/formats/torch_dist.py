"""Distributed checkpoints of megatron-core (`torch_dist`): whole tensors read chunk by chunk, nothing in them executed.

A folder holds `.metadata`, a pickle of names, shapes and places, and `*.distcp` files with one `torch.save` per chunk.
The metadata is unpickled with inert stand-ins for all classes, the chunks with `weights_only`. Source: torch
`distributed/checkpoint/{metadata,filesystem}.py`, megatron-core `dist_checkpointing/strategies/torch.py`.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from neva.errors import CheckpointError, reason
from neva.formats.archive import ByteRange, read_range

EXTRA_STATE = "_extra_state"  # Transformer Engine's fp8 scales: no weights


class DistributedWeights(Mapping[str, Tensor]):
    """The tensors of a distributed checkpoint under their stored names, each read when it is asked for.

    Args:
        members: where its files lie, by name.
        where: what messages call it.

    Raises:
        CheckpointError: another format, or content that is not understood.
    """

    def __init__(self, members: Mapping[str, ByteRange], where: str) -> None:
        if ".metadata" not in members:
            found = "a zarr checkpoint" if any(name.endswith(".zarray") for name in members) else "none"
            raise CheckpointError(
                f"{where}: expected a distributed checkpoint in torch_dist format, found {found}; "
                "save it again with dist_ckpt_format=torch_dist"
            )
        self._members, self._where = members, where
        metadata = _unpickle(read_range(members[".metadata"]), where)
        entries = metadata.state_dict_metadata.items()
        self.shapes = {name: tuple(entry.size) for name, entry in entries if hasattr(entry, "size")}
        self._dtypes = {name: entry.properties.state[0] for name, entry in entries if name in self.shapes}
        others = [name for name, _ in entries if name not in self.shapes and EXTRA_STATE not in name]
        if others:
            raise CheckpointError(f"{where}: {others[0]} is not a tensor; expected weights alone")
        self._chunks: dict[str, list[tuple[tuple[int, ...], Any]]] = defaultdict(list)
        for index, place in metadata.storage_data.items():
            if index.fqn in self.shapes:
                self._chunks[index.fqn].append((tuple(index.offset or ()), place))

    def __getitem__(self, name: str) -> Tensor:
        return self._assemble(name, None)

    def slice(self, name: str, index: int) -> Tensor:
        """Returns `self[name][index]`, without reading the rest."""
        return self._assemble(name, index)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _assemble(self, name: str, index: int | None) -> Tensor:
        shape = self.shapes[name]
        whole = torch.empty(shape if index is None else shape[1:], dtype=self._dtypes[name])
        filled = 0
        for offsets, place in self._chunks[name]:
            if index is not None and offsets[0] > index:
                continue
            chunk = self._chunk(place)
            if index is not None:
                if index >= offsets[0] + len(chunk):
                    continue
                offsets, chunk = offsets[1:], chunk[index - offsets[0]]
            view = whole
            for dim, (start, length) in enumerate(zip(offsets, chunk.shape, strict=True)):
                view = view.narrow(dim, start, length)
            view.copy_(chunk)
            filled += chunk.numel()
        if filled != whole.numel():
            raise CheckpointError(f"{self._where}: {name} has {whole.numel()} elements, its chunks {filled}")
        return whole

    def _chunk(self, place: Any) -> Tensor:
        if place.relative_path not in self._members:
            raise CheckpointError(
                f"{self._where}: {place.relative_path} is missing; the checkpoint is incomplete"
            )
        file, start, size = self._members[place.relative_path]
        if place.offset + place.length > size:
            raise CheckpointError(f"{self._where}: {place.relative_path} is cut short")
        content = read_range((file, start + place.offset, place.length))
        try:
            chunk = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever broken bytes make torch and pickle raise
            raise CheckpointError(
                f"{self._where}: {place.relative_path} does not hold a tensor at byte {place.offset} "
                f"({reason(error)}); fetch the file again"
            ) from error
        if not isinstance(chunk, Tensor):
            raise CheckpointError(
                f"{self._where}: {place.relative_path} holds a {type(chunk).__name__} at byte {place.offset}, expected "
                "a tensor"
            )
        return chunk


class _Inert:
    """Stands for any class named in a pickle: keeps its attributes, executes nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        found = getattr(torch, name, None) if module == "torch" else None
        return found if found is torch.Size or isinstance(found, torch.dtype) else _Inert


def _unpickle(content: bytes, where: str) -> Any:
    try:
        metadata = _Unpickler(io.BytesIO(content)).load()
        metadata.state_dict_metadata, metadata.storage_data  # noqa: B018
    except Exception as error:  # whatever a broken pickle raises
        raise CheckpointError(
            f"{where}: .metadata is not that of a distributed checkpoint ({error})"
        ) from error
    return metadata
