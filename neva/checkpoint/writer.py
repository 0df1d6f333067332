"""Writes what a rank holds of a checkpoint, in Megatron's distributed format, by threads of this process.

Megatron plans who writes what; its own writers are processes that are forked while the threads of gloo run, and one of
them that is killed is waited for without end.
"""

from __future__ import annotations

import io
import queue
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch import Tensor

Bucket = tuple[str, str, tuple[list[Any], list[tuple[Any, Tensor]]]]
"""A file: its path, its name, and the items in it, bytes and tensors."""

_COPIES_AT_ONCE = 4
"""Tensors; one thread does not fill the memory's bandwidth."""


class _Plan(TorchDistSaveShardedStrategy):
    """Megatron's way to save, as far as to what it would write."""

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any) -> Any:
        return writer, save_state_dict_ret[1]


class StateWriter:
    """What this rank has to write of a state. Made by every rank, at the same time; the rest is each rank's own.

    Args:
        state: sharded tensors, and what is common to the ranks.
        folder: where the files go; it exists.
    """

    def __init__(self, state: dict[str, Any], folder: Path) -> None:
        self.folder = folder
        self._common = io.BytesIO()
        # Of this process; Megatron's own is one that outlives a killed run for a minute.
        filesystem_async._results_queue = queue.Queue()
        sharded, common = save_preprocess(state)
        torch.save(common, self._common)
        live = (value.data for value in nested_values(sharded) if isinstance(value, ShardedTensor))
        self._live = {data.untyped_storage().data_ptr() for data in live if data is not None}
        self._strategy = _Plan("torch_dist", 1)
        self._writer, self._metadata = self._strategy.async_save(sharded, folder)
        self.buckets: list[Bucket] = self._writer.write_buckets or []

    def copy(self, buffers: dict[Any, Tensor]) -> None:
        """Lets training go on: what it changes is copied into `buffers`, which later saves use again."""
        copied = partial(self._copied, buffers)
        with ThreadPoolExecutor(_COPIES_AT_ONCE, thread_name_prefix="checkpoint") as pool:
            self.buckets = [
                (path, name, (items, [*pool.map(copied, tensors)]))
                for path, name, (items, tensors) in self.buckets
            ]
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _copied(self, buffers: dict[Any, Tensor], pending: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
        item, tensor = pending
        if tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() not in self._live:
            return pending  # Megatron has copied it already
        buffer = buffers.get(item.index)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            buffers[item.index] = buffer
        return item, buffer.copy_(tensor, non_blocking=True)

    def write(self) -> list[Any]:
        """Writes this rank's files; returns where each tensor stands.

        Raises:
            OSError: the file system does not take them; torch's RuntimeError where it was torch that noticed.
        """
        if not self.buckets:
            return []
        with ThreadPoolExecutor(len(self.buckets), thread_name_prefix="checkpoint") as pool:
            return [result for results in pool.map(self._write_file, self.buckets) for result in results]

    def _write_file(self, bucket: Bucket) -> list[Any]:
        results: queue.Queue[tuple[int, Any]] = queue.Queue()
        count: queue.Queue[int] = queue.Queue()
        count.put(0)
        path, name, (items, tensors) = bucket
        held = (path, name, (items, [(item, tensor.cpu()) for item, tensor in tensors]))
        writer = filesystem_async.FileSystemWriterAsync
        writer.write_preloaded_data([self._writer.transforms], 0, held, results, count, use_fsync=True)
        (_, found) = results.get()
        if isinstance(found, Exception):
            raise found
        return found

    def finish(self, results: list[list[Any]], extra: Mapping[str, str]) -> None:
        """Writes the common state, and what makes the files a checkpoint. Called by rank 0.

        Args:
            results: of all ranks, what `write` returned.
            extra: texts by the names of further files.
        """
        (self.folder / COMMON_STATE_FNAME).write_bytes(self._common.getbuffer())
        self._writer.finish(self._metadata, results)
        for name, text in extra.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        save_config(CheckpointingConfig(self._strategy.backend, self._strategy.version), str(self.folder))
